//! The world: everything there is, and the clock that moves it. The same scenario always gives the
//! same run.

mod alone;
mod cluster;
mod effects;
pub(crate) mod faults;
mod nodes;
mod observing;
mod operator;
mod picture;
mod processes;
pub(crate) mod publishers;
mod session;
mod settings;
mod whole;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use fastrand::Rng;
use shadow_broker::memory::core::{
    self, ConnectionId, Destination, ExchangeKind, ExchangeOptions, Kind, Name, QueueOptions,
    Refusal,
};
use shadow_protocol::broker::Binding;
use shadow_protocol::names::Names;
use shadow_protocol::phase::State;
use shadow_protocol::spec::Spec;
use shadow_protocol::step::Step;

use crate::application::{Ledger, Memory, Process};
use crate::cluster::Pod;
use crate::log::Log;
use crate::message::{Broker, Serials};
use crate::mutant::Mutant;
use crate::scenario::Scenario;
use crate::tempo::Tempo;
use crate::verdict::Verdict;
use crate::watch::Watch;
use operator::Operator;
use session::Late;

/// The application's queue.
pub const QUEUE: &str = "app.events";
/// The exchange that feeds it.
pub const EXCHANGE: &str = "app.fanout";
/// The pod that moves.
pub const SOURCE: &str = "consumer-0";
const NODES: [&str; 2] = ["worker-1", "worker-2"];

/// How the broker's statistics lag: less than the settings wait for them.
const STATISTICS: core::Settings = core::Settings { emit_every: 40, collect_every: 25 };

/// When the migration begins, in milliseconds.
pub const BEGIN: u64 = 50;

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Publish(u8),
    Arrive(ConnectionId, Name),
    Flush(ConnectionId),
    Commit(ConnectionId),
    Work(usize),
    Look(usize),
    Connect(usize),
    Thaw(usize),
    Pay(usize),
    Started(usize),
    Probed(usize),
    Gone(usize),
    Reconcile,
    Operate(u32),
    Fault(usize),
    IntruderLeaves(ConnectionId),
    AlarmEnds,
    /// An order has waited long enough for this pod.
    Expired(String),
    QueuesSee,
    Late(usize),
    Noticed(ConnectionId),
    PowerReturns(usize),
}

/// The API server's record of the migration.
#[derive(Debug, Default)]
struct Record {
    state: Option<Arc<State>>,
    version: u64,
}

/// The transfer Job.
#[derive(Debug)]
struct Job {
    done_at: u64,
    checkpoint: usize,
    fails: bool,
}

/// What there is and will be at the broker, by name.
struct Stage {
    queue: Name,
    exchange: Name,
    nothing: Name,
    binding: Binding,
    names: Names,
}

/// Everything there is.
pub struct World {
    pub(crate) scenario: Scenario,
    mutant: Option<Mutant>,
    tempo: Tempo,
    spec: Spec,
    rng: Rng,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next_event: u64,
    pub(crate) broker: Broker,
    stage: Stage,
    pub(crate) pods: Vec<Pod>,
    pub(crate) processes: Vec<Option<Process>>,
    /// Whether a process has a turn coming.
    working: Vec<bool>,
    checkpoints: Vec<Memory>,
    job: Option<Job>,
    pulled_at: Option<u64>,
    /// Admission keeps the source's name free.
    pub(crate) held: bool,
    /// The StatefulSet has one pod less than when the migration began.
    pub(crate) smaller: bool,
    /// The Deployment is pinned to the target node.
    pub(crate) pinned: bool,
    record: Record,
    operator: Operator,
    /// What operators that are gone still try to do.
    late: Vec<Late>,
    /// How many messages each publisher has published; the last one publishes in transactions.
    pub(crate) published: Vec<u64>,
    /// The backlog's part of it.
    piled_up: Vec<u64>,
    /// The publishers' connections.
    publishers: Vec<Option<ConnectionId>>,
    publishing: bool,
    /// Arrivals keep their order, per connection and queue.
    arrivals: BTreeMap<(ConnectionId, Name), u64>,
    /// Published, and lost by the broker before anybody had it confirmed.
    pub(crate) unconfirmed: Serials,
    alarm_until: u64,
    flood_until: u64,
    broker_down_until: u64,
    /// When the nodes' power returns.
    unpowered_until: [u64; 2],
    /// Checkpoints whose archives end early.
    truncated: BTreeSet<usize>,
    truncates: bool,
    push_fails: bool,
    restore_fails: bool,
    /// Until when admission does not answer.
    admission_silent_until: u64,
    /// What the process that died had acknowledged; its successor begins there.
    pub(crate) base: Ledger,
    /// How much the source knew when it ended, where nobody replays it.
    last_words: u64,
    /// The state that was to survive died by a fault: a fresh process goes on.
    pub(crate) bereaved: bool,
    /// It died after the commit point: as without a migration.
    pub(crate) forgiven: bool,
    /// Deliveries trailed for longer than anybody waits.
    pub(crate) flooded: bool,
    /// An application that goes its own way when it connects lost its connection under way.
    pub(crate) strayed: bool,
    /// Connections were cut while the source was on its way from one queue to the next: what it
    /// held returned to the one it has left.
    pub(crate) overtaken: bool,
    /// A second consumer that is none of ours took messages.
    pub(crate) intruded: bool,
    pub(crate) violations: Vec<String>,
    /// Effects carried out, by name.
    pub(crate) performed: BTreeSet<&'static str>,
    /// From which step the record went to which.
    pub(crate) transitions: BTreeSet<(Step, Step)>,
    pub(crate) log: Log,
    /// Who looks on, if anybody does.
    pub(crate) watch: Option<Box<Watch>>,
}

/// The exchange and the queue of the application.
pub(crate) fn set_up(broker: &mut Broker, quorum: bool) -> Result<(), Refusal> {
    let kind = if quorum { Kind::Quorum } else { Kind::Classic };
    let client = broker.connect("10.0.3.1", "the application's owner");
    broker.declare_exchange(client, EXCHANGE, ExchangeOptions::durable(ExchangeKind::Fanout))?;
    broker.declare_queue(client, QUEUE, QueueOptions::durable(kind))?;
    broker.bind(client, &Destination::Queue(QUEUE.into()), &Binding::plain(EXCHANGE))?;
    broker.close(client);
    Ok(())
}

impl World {
    /// The world at the beginning of a scenario.
    pub fn new(scenario: Scenario, mutant: Option<Mutant>, log: Log) -> Self {
        let mut tempo = Tempo::shrunken();
        if let Some(mutant) = mutant {
            mutant.settings(&mut tempo.settings);
        }
        Self::create(scenario, mutant, tempo, log, None)
    }

    /// The same at another tempo, with somebody who looks on.
    pub(crate) fn watched(scenario: Scenario, tempo: Tempo, log: Log, watch: Watch) -> Self {
        Self::create(scenario, None, tempo, log, Some(Box::new(watch)))
    }

    fn create(
        scenario: Scenario,
        mutant: Option<Mutant>,
        tempo: Tempo,
        log: Log,
        watch: Option<Box<Watch>>,
    ) -> Self {
        let spec = settings::spec(&scenario, &tempo);
        let publishers = usize::from(scenario.publishers) + 1;
        let stage = Stage {
            queue: QUEUE.into(),
            exchange: EXCHANGE.into(),
            nothing: "".into(),
            binding: Binding::plain(EXCHANGE),
            names: Names::new(QUEUE, &spec.uid),
        };
        let mut world = Self {
            rng: Rng::with_seed(scenario.seed ^ 0x5eed),
            mutant,
            tempo,
            spec,
            now: 0,
            events: BinaryHeap::new(),
            next_event: 0,
            broker: Broker::new(STATISTICS),
            stage,
            pods: Vec::new(),
            processes: Vec::new(),
            working: Vec::new(),
            checkpoints: Vec::new(),
            job: None,
            pulled_at: None,
            held: false,
            smaller: false,
            pinned: false,
            record: Record::default(),
            operator: Operator::default(),
            late: Vec::new(),
            published: vec![0; publishers],
            piled_up: Vec::new(),
            publishers: vec![None; publishers],
            publishing: true,
            arrivals: BTreeMap::new(),
            unconfirmed: Serials::default(),
            alarm_until: 0,
            flood_until: 0,
            broker_down_until: 0,
            unpowered_until: [0; 2],
            truncated: BTreeSet::new(),
            truncates: false,
            push_fails: false,
            restore_fails: false,
            admission_silent_until: 0,
            base: Ledger::new(vec![0; publishers]),
            last_words: 0,
            bereaved: false,
            forgiven: false,
            flooded: false,
            strayed: false,
            overtaken: false,
            intruded: false,
            violations: Vec::new(),
            performed: BTreeSet::new(),
            transitions: BTreeSet::new(),
            log,
            watch,
            scenario,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.set_up();
        let pod = self.create_pod(SOURCE, NODES[0], None);
        self.pods[pod].owned = true;
        self.started(pod);
        self.pods[pod].probed = true;
        for publisher in 0..self.scenario.publishers {
            let first = self.rng.u64(..=self.scenario.interval);
            if self.tempo.rate != Some(0) {
                self.at(first, Event::Publish(publisher));
            }
        }
        self.operator.running = true;
        self.operate_in(BEGIN);
        for (index, fault) in self.scenario.faults.clone().into_iter().enumerate() {
            if let crate::scenario::Fault::World(after, _) = fault {
                self.at(BEGIN + after, Event::Fault(index));
            }
        }
    }

    /// What the application's owner has set up, and what has piled up since.
    fn set_up(&mut self) {
        if let Err(refusal) = set_up(&mut self.broker, self.scenario.quorum) {
            self.violations.push(format!("setting up: {refusal}"));
        }
        if !self.scenario.alone() {
            self.pile_up();
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> Verdict {
        self.play();
        Verdict::of(self)
    }

    pub(crate) fn play(&mut self) {
        let mut count = 0;
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            self.broker.advance(at);
            count += 1;
            let endless = at > self.tempo.longest && !self.operator.finished;
            if count > self.tempo.most_events || endless {
                self.violations.push(format!("no end after {at} ms: {}", self.waiting_for()));
                break;
            }
            let (grave, calls) = (event.is_grave(), self.operator.calls);
            self.happen(event);
            if grave || self.operator.calls != calls {
                self.check_whole();
            }
            if let Some(mut watch) = self.watch.take() {
                watch.look(self);
                self.watch = Some(watch);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Publish(publisher) => self.publish_and_go_on(publisher),
            Event::Arrive(connection, queue) => self.arrive(connection, &queue),
            Event::Flush(connection) => self.flush(connection),
            Event::Commit(connection) => self.commit(connection),
            Event::Work(process) => self.work(process),
            Event::Look(process) => self.look(process),
            Event::Connect(process) => self.connect(process),
            Event::Thaw(process) => {
                if let Some(process) = self.processes[process].as_mut() {
                    process.frozen = false;
                }
                self.nudge(process);
                self.at(1, Event::Look(process));
            }
            Event::Pay(process) => {
                self.with(process, |process, around| process.pay(around.broker));
            }
            Event::Started(pod) => self.started(pod),
            Event::Probed(pod) => self.probed(pod),
            Event::Gone(pod) => self.gone(pod),
            Event::Reconcile => self.reconcile(),
            Event::Operate(turn) => self.operate(turn),
            Event::Fault(index) => self.fault(index),
            Event::IntruderLeaves(connection) | Event::Noticed(connection) => {
                self.broker.close(connection);
                self.wake_all();
                // What it held of a control queue returns as well.
                self.all_look();
            }
            // The broker's time has advanced already.
            Event::Expired(pod) => self.ordered(&pod),
            Event::AlarmEnds => self.alarm_ends(),
            Event::QueuesSee => self.blind_queues(false),
            Event::PowerReturns(node) => self.power_returns(node),
            Event::Late(index) => self.act_late(index),
        }
    }

    /// Something happens `after` so many milliseconds.
    fn at(&mut self, after: u64, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((self.now + after, self.next_event, event)));
    }

    /// The state as stored, if there is one.
    pub fn state(&self) -> Option<&State> {
        self.record.state.as_deref()
    }

    /// Calls that the operator made.
    pub fn calls(&self) -> u32 {
        self.operator.calls
    }

    /// Milliseconds since the world began.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// No way back any more, as far as the record says.
    fn committed(&self) -> bool {
        self.record.state.as_deref().is_some_and(faults::committed)
    }
}
