#!/usr/bin/python3
"""A stateful consumer in plain Python and pika, as an ordinary user would write it.

It applies messages to a ledger in memory, obeys the control messages START_REPLAY and END_REPLAY
on the queue ms2m.control.<hostname>, and serves the ledger as JSON over HTTP. It behaves like
`workload consumer`, reads the same environment variables, and keeps the same ledger.
"""

import json
import logging
import os
import signal
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from ledger import Ledger

log = logging.getLogger("consumer")


def flag(name):
    return os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "n", "off", "f")


AMQP_URL = os.environ.get("AMQP_URL", "amqp://localhost:5672/%2f")
EXCHANGE = os.environ.get("EXCHANGE", "app.fanout")
EXCHANGE_TYPE = os.environ.get("EXCHANGE_TYPE", "fanout")
ROUTING_KEY = os.environ.get("ROUTING_KEY", "")
QUEUE = os.environ.get("QUEUE", "app.events")
QUEUE_TYPE = os.environ.get("QUEUE_TYPE", "classic")
PREFETCH = int(os.environ.get("PREFETCH", "10"))
SERVICE_MS = int(os.environ.get("SERVICE_MS", "0"))
REBIND = flag("REBIND")
REMEMBER = flag("REMEMBER")
# Two habits under which an application can't be moved: that it is refused has to be tested.
AUTO_ACK = flag("AUTO_ACK")
EXCLUSIVE_QUEUE = flag("EXCLUSIVE_QUEUE")
BALLAST_MB = int(os.environ.get("BALLAST_MB", "0"))
HTTP_PORT = int(os.environ.get("HTTP_PORT", "8080"))
HOSTNAME_FILE = os.environ.get("HOSTNAME_FILE", "/etc/hostname")


def now():
    """This moment on the wall clock and on the monotonic one, in milliseconds."""
    return time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000


class State:
    """What the consumer's thread writes and the HTTP threads show."""

    def __init__(self):
        self.lock = threading.Lock()
        self.boot_id = os.urandom(8).hex()
        self.ledger = Ledger(*now())
        self.started_at = self.ledger.window.began
        self.pod = os.environ.get("POD_NAME") or os.environ.get("HOSTNAME", "")
        self.hostname = self.control_queue = ""
        self.queue = None
        self.connections = self.malformed = 0

    def answer(self):
        with self.lock:
            return {
                "boot_id": self.boot_id,
                "started_at": self.started_at,
                "pod": self.pod,
                "hostname": self.hostname,
                "control_queue": self.control_queue,
                "queue": self.queue,
                "connections": self.connections,
                "malformed": self.malformed,
                **self.ledger.report(),
            }

    def applied(self):
        with self.lock:
            return self.ledger.applied()

    def new_window(self):
        with self.lock:
            self.ledger.reset_window(*now())


class ConnectionEnded(Exception):
    pass


class Consumer:
    """Callbacks only collect what arrives; everything is done in the loop of `consume`."""

    def __init__(self, state):
        self.state = state
        self.declared = False
        self.told = None
        self.stopping = False

    def run(self):
        backoff = 0.1
        while not self.stopping:
            connections = self.state.connections
            try:
                self.connect()
                self.consume()
                self.connection.close()
            except (AMQPError, ConnectionEnded, OSError) as error:
                log.warning("connecting again: %s: %s", type(error).__name__, error)
                self.abandon()
                with self.state.lock:
                    self.state.queue = None
                if self.state.connections > connections:
                    backoff = 0.1
                time.sleep(backoff)
                backoff = min(backoff * 2, 1.0)

    def abandon(self):
        """Closes what is left of a connection, so that no second one stays behind."""
        try:
            if self.connection and self.connection.is_open:
                self.connection.close()
        except (AMQPError, OSError):
            pass

    def connect(self):
        self.connection = None
        # What an earlier connection had delivered comes again.
        self.deliveries, self.orders = deque(), deque()
        # At every connect: a restored process has another name than the one it started with.
        with open(HOSTNAME_FILE, encoding="utf-8") as file:
            hostname = file.read().strip()
        control_queue = "ms2m.control." + hostname
        parameters = pika.URLParameters(AMQP_URL)
        parameters.heartbeat = 30
        parameters.socket_timeout = parameters.stack_timeout = 5
        parameters.client_properties = {"connection_name": hostname}
        self.connection = pika.BlockingConnection(parameters)
        self.channel = self.connection.channel()
        self.channel.basic_qos(prefetch_count=PREFETCH)
        if not self.declared or REBIND:
            self.declare()
        if not self.declared:
            self.channel.queue_declare(control_queue, durable=True)
            self.declared = True
        if not REMEMBER:
            self.told = None
        self.control = self.connection.channel()
        self.control.basic_consume(control_queue, self.on_order)
        self.control.add_on_cancel_callback(self.on_cancelled)
        self.channel.add_on_cancel_callback(self.on_cancelled)
        self.cancelled = False
        self.start(self.told or QUEUE)
        with self.state.lock:
            self.state.hostname, self.state.control_queue = hostname, control_queue
            self.state.connections += 1
        log.info("connected as %s, consuming %s", hostname, self.queue)

    def declare(self):
        if EXCHANGE:
            self.channel.exchange_declare(EXCHANGE, EXCHANGE_TYPE, durable=True)
        arguments = {} if QUEUE_TYPE == "classic" else {"x-queue-type": QUEUE_TYPE}
        self.channel.queue_declare(
            QUEUE, durable=True, exclusive=EXCLUSIVE_QUEUE, arguments=arguments
        )
        if EXCHANGE:
            self.channel.queue_bind(QUEUE, EXCHANGE, ROUTING_KEY)

    def start(self, queue):
        try:
            self.tag = self.channel.basic_consume(queue, self.on_message, auto_ack=AUTO_ACK)
        except ChannelClosedByBroker as error:
            if error.reply_code == 404:
                self.told = None  # it is gone: the next connection goes to our own queue
            raise
        self.queue = queue
        with self.state.lock:
            self.state.queue = queue

    def on_message(self, _channel, method, _properties, body):
        self.deliveries.append((method, body))

    def on_order(self, channel, method, _properties, body):
        self.orders.append((channel, method, body))

    def on_cancelled(self, _method):
        self.cancelled = True

    def consume(self):
        while not self.stopping:
            # Wait only if there is nothing to do.
            busy = self.deliveries or self.orders
            self.connection.process_data_events(time_limit=0 if busy else 0.25)
            if self.cancelled or self.channel.is_closed or self.control.is_closed:
                raise ConnectionEnded("the broker cancelled a consumer")
            if self.orders:
                self.obey(*self.orders.popleft())
            elif self.deliveries:
                self.apply(*self.deliveries.popleft())

    def obey(self, channel, method, body):
        try:
            order = json.loads(body)
            kind = order["type"]
            queue = order["payload"]["queue"] if kind == "START_REPLAY" else QUEUE
            if kind not in ("START_REPLAY", "END_REPLAY") or not isinstance(queue, str):
                raise ValueError(kind)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("ignoring a malformed control message: %r", error)
            channel.basic_ack(method.delivery_tag)
            return
        self.told = queue if kind == "START_REPLAY" else None
        try:
            if queue != self.queue:
                self.switch(queue)
        except ChannelClosedByBroker:
            # The named queue does not exist: done with. Otherwise the order comes again.
            if self.told is None:
                channel.basic_ack(method.delivery_tag)
            raise
        channel.basic_ack(method.delivery_tag)

    def switch(self, queue):
        """Cancel, finish and acknowledge what we hold, consume the other queue."""
        # pika rejects whatever arrives after basic_cancel, so first take in what the broker has
        # already sent: the first answer means that the queue has handed it to our channel, the
        # second that the channel has written it before.
        for _ in range(2):
            self.channel.queue_declare(self.queue, passive=True)
        self.connection.process_data_events(time_limit=0)
        self.channel.basic_cancel(self.tag)
        while self.deliveries:
            self.apply(*self.deliveries.popleft())
        log.info("obeyed: from %s to %s", self.queue, queue)
        with self.state.lock:
            self.state.queue = None
        self.start(queue)

    def apply(self, method, body):
        if SERVICE_MS:
            # Not time.sleep: the connection wants its heartbeats.
            self.connection.sleep(SERVICE_MS / 1000)
        try:
            message = json.loads(body)
            publisher, seq = message["publisher"], int(message["seq"])
            published_at = int(message["published_at"])
            republication = int(message.get("republication", 0))
        except (ValueError, KeyError, TypeError) as error:
            log.warning("ignoring a malformed message: %r", error)
            with self.state.lock:
                self.state.malformed += 1
        else:
            with self.state.lock:
                self.state.ledger.apply(
                    publisher, seq, published_at, republication, method.redelivered, *now()
                )
        if not AUTO_ACK:
            self.channel.basic_ack(method.delivery_tag)


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def server_bind(self):
        TCPServer.server_bind(self)  # HTTPServer's own asks the DNS for our name


def handler(state):
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self):
            if self.path in ("/", "/ledger"):
                self.answer(200, json.dumps(state.answer()), "application/json")
            elif self.path == "/applied":
                self.answer(200, json.dumps(state.applied()), "application/json")
            elif self.path == "/healthz":
                self.answer(200, "ok\n", "text/plain")
            else:
                self.answer(404, "try /ledger\n", "text/plain")

        def do_POST(self):
            if self.path == "/window":
                state.new_window()
                self.answer(200, json.dumps(state.answer()), "application/json")
            else:
                self.answer(404, "try /window\n", "text/plain")

        def answer(self, status, text, kind):
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass  # a probe asks a hundred times a second

    return Handler


def main():
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    state = State()
    ballast = os.urandom(BALLAST_MB << 20)
    server = Server(("", HTTP_PORT), handler(state))
    log.info("serving the ledger on port %d", server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    consumer = Consumer(state)

    def stop(*_):
        consumer.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    consumer.run()
    del ballast


if __name__ == "__main__":
    main()
