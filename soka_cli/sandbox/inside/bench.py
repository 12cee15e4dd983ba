"""The trusted side's process: one verdict after another, each in a child of its own."""

import os
import socket

from .channel import Channel
from .trial import try_program

DIED = 1


class Bench:
    """Takes jobs, each with a socket to the program that it is about, from the process that keeps the clock."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.control = socket.socket(fileno=channel.end)

    def serve_all(self) -> None:
        """Until the other side ends."""
        while True:
            mark, descriptors, _, _ = socket.recv_fds(self.control, 1, 1)
            if not mark:
                return
            job = self.channel.receive()
            child = os.fork()
            if child == 0:
                status = DIED
                try:
                    self.channel.send(try_program(Channel(descriptors[0]), job or {}))
                    status = 0
                finally:
                    os._exit(status)
            os.close(descriptors[0])
            _, status = os.waitpid(child, 0)
            if status:
                why = "what the program returned was more than the judging process could hold"
                self.channel.send({"verdict": "fail", "why": why, "mode": "separate"})
