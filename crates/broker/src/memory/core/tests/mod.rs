//! Each of the broker's habits that the protocol relies on, by name.

mod laws;
mod queues;
mod routing;
mod world;

use shadow_protocol::broker::Binding;

use super::*;

/// A broker, and a connection to it.
struct Bench {
    broker: Broker,
    client: ConnectionId,
}

const EXCHANGE: &str = "e";

fn serial(sequence: u64) -> Serial {
    Serial { publisher: 1, sequence }
}

fn binding(source: &str, key: &str, arguments: &str) -> Binding {
    Binding {
        source: source.to_owned(),
        routing_key: key.to_owned(),
        arguments: arguments.to_owned(),
    }
}

impl Bench {
    fn new() -> Self {
        let mut broker = Broker::default();
        let client = broker.connect("guest", "bench");
        Self { broker, client }
    }

    /// With a queue of this kind.
    fn with(queue: &str, options: QueueOptions) -> Self {
        let mut bench = Self::new();
        bench.broker.declare_queue(bench.client, queue, options).unwrap();
        bench
    }

    fn exchange(&mut self, name: &str, options: ExchangeOptions) {
        self.broker.declare_exchange(self.client, name, options).unwrap();
    }

    fn bind(&mut self, to: &Destination, source: &str) {
        self.broker.bind(self.client, to, &Binding::plain(source)).unwrap();
    }

    fn unbind(&mut self, to: &Destination, source: &str) {
        self.broker.unbind(self.client, to, &Binding::plain(source)).unwrap();
    }

    /// Straight to a queue.
    fn publish(&mut self, queue: &str, sequences: std::ops::RangeInclusive<u64>) {
        let run = run_to("", queue, sequences);
        self.broker.publish(self.client, run).unwrap();
    }

    fn consume(&mut self, queue: &str, options: ConsumeOptions) -> ConsumerId {
        self.broker.consume(self.client, queue, options).unwrap()
    }

    /// Reads what has reached a consumer, one by one.
    fn read(&mut self, consumer: ConsumerId) -> Vec<u64> {
        let next = |_| self.broker.take(consumer, 1).unwrap();
        (0..).map_while(next).map(|it: Delivery<Serial>| it.first.sequence).collect()
    }

    /// The sequence numbers of what is ready.
    fn ready(&self, queue: &str) -> Vec<u64> {
        let runs = self.broker.ready(queue);
        runs.flat_map(|(first, count, _)| first.sequence..first.sequence + count).collect()
    }

    fn counts(&self, queue: &str) -> (u64, u32) {
        let counts = self.broker.counts(queue).unwrap();
        (counts.ready, counts.consumers)
    }
}

fn run_to(exchange: &str, key: &str, sequences: std::ops::RangeInclusive<u64>) -> Publish<Serial> {
    let count = sequences.end() - sequences.start() + 1;
    Publish { count, ..Publish::one(exchange, key, serial(*sequences.start())) }
}

fn queue(name: &str) -> Destination {
    Destination::Queue(name.into())
}

fn exchange(name: &str) -> Destination {
    Destination::Exchange(name.into())
}

fn prefetch(prefetch: u64) -> ConsumeOptions {
    ConsumeOptions { prefetch, ..ConsumeOptions::default() }
}
