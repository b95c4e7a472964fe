//! The broker of the model: the one in memory, and what the protocol asks of it.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use shadow_broker::memory::core::{
    Broker, ConnectionId, ConsumeOptions, ConsumerId, Content, Destination, ExchangeKind,
    ExchangeOptions, Kind, Publish, QueueOptions, Refusal,
};
use shadow_broker::memory::topology;
use shadow_protocol::broker::{Binding, Counts, Emptiness, Order, Topology};
use shadow_protocol::control::Control;
use shadow_protocol::names::{Names, control_queue};

/// The application's exchange.
pub const EXCHANGE: &str = "e";
const QUEUE: &str = "q";
pub const UID: &str = "m";

/// The names of the migration.
pub static NAMES: LazyLock<Names> = LazyLock::new(|| Names::new(QUEUE, UID));

/// A queue that an application may consume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// The application's own.
    Q,
    S1,
    S2,
    Park,
    Park2,
}

pub const PLACES: [Place; 5] = [Place::Q, Place::S1, Place::S2, Place::Park, Place::Park2];

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Place::Q => &NAMES.primary,
            Place::S1 => &NAMES.s1,
            Place::S2 => &NAMES.s2,
            Place::Park => &NAMES.park,
            Place::Park2 => &NAMES.park2,
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        PLACES.into_iter().find(|place| place.name() == name)
    }
}

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Body {
    /// A publisher's message.
    Event { publisher: u8, number: u8 },
    /// `START_REPLAY`.
    Consume(Place),
    /// `END_REPLAY`.
    Return,
}

/// Every message is a run of its own: there are few.
impl Content for Body {
    fn later(&self, _: u64) -> Self {
        *self
    }

    fn continues(&self, _: u64, _: &Self) -> bool {
        false
    }
}

/// The broker, and the operator's connection to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    core: Broker<Body>,
    operator: ConnectionId,
}

impl Wire {
    /// A broker with the application's queue and what feeds it.
    pub fn new() -> Result<Self, Refusal> {
        let mut core = Broker::default();
        let operator = core.connect("operator", "operator");
        core.declare_exchange(operator, EXCHANGE, ExchangeOptions::durable(ExchangeKind::Fanout))?;
        core.declare_queue(operator, QUEUE, QueueOptions::durable(Kind::Classic))?;
        core.bind(operator, &Destination::Queue(QUEUE.into()), &Binding::plain(EXCHANGE))?;
        Ok(Self { core, operator })
    }

    // What applications do.

    /// A copy connects and reads its control queue.
    pub fn connect(&mut self, pod: &str) -> Option<(ConnectionId, ConsumerId)> {
        let client = self.core.connect(pod, pod);
        let control = control_queue(pod);
        let options = QueueOptions::durable(Kind::Classic);
        self.core.declare_queue(client, &control, options).ok()?;
        let one = ConsumeOptions { prefetch: 1, ..ConsumeOptions::default() };
        let reader = self.core.consume(client, &control, one).ok()?;
        Some((client, reader))
    }

    pub fn consume(
        &mut self,
        client: ConnectionId,
        place: Place,
        prefetch: u64,
    ) -> Option<ConsumerId> {
        let options = ConsumeOptions { prefetch, ..ConsumeOptions::default() };
        self.core.consume(client, place.name(), options).ok()
    }

    pub fn cancel(&mut self, consumer: ConsumerId) {
        // A consumer that is gone has nothing to be cancelled.
        let _ = self.core.cancel(consumer);
    }

    /// What a consumer of `queue` has been sent and has not acknowledged.
    pub fn held(&self, queue: &str, consumer: ConsumerId) -> impl Iterator<Item = Body> {
        let theirs = self.core.held(queue).filter(move |(holder, ..)| *holder == consumer);
        theirs.map(|(_, body, _)| *body)
    }

    /// Reads and acknowledges it.
    pub fn acknowledge(&mut self, consumer: ConsumerId) -> Option<Body> {
        let delivery = self.core.take(consumer, 1).ok()??;
        self.core.ack(consumer, delivery.tag, false).ok()?;
        Some(delivery.first)
    }

    pub fn close(&mut self, client: ConnectionId) {
        self.core.close(client);
    }

    // What publishers do.

    /// The queues that a message published now reaches.
    pub fn route(&self) -> Vec<Place> {
        let names = self.core.route(EXCHANGE, "", "");
        names.iter().filter_map(|name| Place::of(name)).collect()
    }

    /// A message arrives where it was routed to; a queue that is gone by now loses it.
    pub fn arrive(&mut self, place: Place, publisher: u8, number: u8) {
        self.send(place.name(), Body::Event { publisher, number });
    }

    fn send(&mut self, queue: &str, body: Body) -> bool {
        let sent = self.core.publish(self.operator, Publish::one("", queue, body));
        sent.is_ok_and(|_| self.core.queue(queue).is_some())
    }

    // What the operator does.

    /// Lays an order into a control queue; whether there is one.
    pub fn order(&mut self, order: &Order) -> bool {
        let body = match &order.control {
            Control::StartReplay { queue, .. } => match Place::of(queue) {
                Some(place) => Body::Consume(place),
                None => return false,
            },
            Control::EndReplay => Body::Return,
        };
        self.send(&order.queue(), body)
    }

    /// An order that waits goes to its pod.
    pub fn wake(&mut self) {
        self.core.expire(&NAMES.wake);
    }

    /// One change of the topology; whether the broker did it. A move is one instant here.
    pub fn change(&mut self, change: &Topology) -> bool {
        let Topology::Move { from, to } = change else {
            return topology::change(&mut self.core, self.operator, change).is_ok();
        };
        let left: Vec<Body> = self.core.ready(from).map(|(body, ..)| *body).collect();
        let purged = left.is_empty() || self.core.purge(self.operator, from).is_ok();
        purged && left.into_iter().all(|body| self.send(to, body))
    }

    // What can be seen.

    pub fn counts(&self, queue: &str) -> Option<Counts> {
        self.core.counts(queue)
    }

    pub fn exists(&self, place: Place) -> bool {
        self.core.queue(place.name()).is_some()
    }

    /// The broker's word that nothing of a queue is unacknowledged.
    pub fn quiet(&self, place: Place) -> Emptiness {
        let quiet = self.exists(place) && self.core.held(place.name()).next().is_none();
        if quiet { Emptiness::Proved } else { Emptiness::Unproved }
    }

    /// The broker's word that a queue holds nothing.
    pub fn emptiness(&self, place: Place) -> Emptiness {
        let ready = self.core.ready(place.name()).next().is_some();
        if ready { Emptiness::Unproved } else { self.quiet(place) }
    }

    pub fn bindings(&self) -> Vec<Binding> {
        self.core.bindings(&Destination::Queue(QUEUE.into()))
    }

    /// What is in a queue in the order in which it is applied: what was sent, then what is ready.
    pub fn contents(&self, queue: &str) -> impl Iterator<Item = Body> {
        let held = self.core.held(queue).map(|(_, body, _)| *body);
        held.chain(self.core.ready(queue).map(|(body, ..)| *body))
    }

    /// The orders to a pod that have not been obeyed.
    pub fn orders(&self, pod: &str) -> usize {
        self.contents(&control_queue(pod)).count()
    }

    /// What of the migration is left: its exchanges and side queues.
    pub fn left(&self) -> Vec<&'static str> {
        let exchanges = NAMES.exchanges().into_iter();
        let exchanges = exchanges.filter(|name| self.core.exchange_kind(name).is_some());
        let queues = NAMES.side_queues();
        exchanges.chain(queues.filter(|name| self.core.queue(name).is_some())).collect()
    }

    /// Equal for brokers that can't be told apart by anything that happens later: numbers of
    /// connections and consumers, totals and statistics are left out, or no situation would ever
    /// come back.
    pub fn digest<H: std::hash::Hasher>(&self, pods: [&str; 2], hasher: &mut H) {
        use std::hash::Hash as _;
        let controls = pods.map(control_queue);
        let queues = PLACES.iter().map(|place| place.name());
        let orders = controls.iter().chain([&NAMES.wake]).map(String::as_str);
        for name in queues.chain(orders) {
            self.core.queue(name).is_some().hash(hasher);
            hasher.write_u8(0xfe);
            self.core.held(name).for_each(|(_, body, _)| body.hash(hasher));
            hasher.write_u8(0xff);
            self.core.ready(name).for_each(|(body, ..)| body.hash(hasher));
        }
        for name in std::iter::once(EXCHANGE).chain(NAMES.exchanges()) {
            self.core.exchange_kind(name).is_some().hash(hasher);
            self.core.destinations(name).hash(hasher);
        }
    }
}
