"""What runs inside a sandbox. Standard library only and imported by itself, so its imports are relative."""
