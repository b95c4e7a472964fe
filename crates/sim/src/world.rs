//! The world: everything there is, and the clock that moves it. The same scenario always gives the
//! same run.

mod cluster;
mod faults;
mod operator;
mod picture;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use fastrand::Rng;
use shadow_protocol::broker::Binding;
use shadow_protocol::names::control_queue;
use shadow_protocol::phase::{Phase, RestoreStep, State, SwitchStep};
use shadow_protocol::spec::{IdentitySwap, Spec, Strategy, Transfer};
use shadow_protocol::step::Step;

use crate::application::{Ledger, Memory, Process, Surroundings};
use crate::broker::{Broker, Message};
use crate::cluster::Pod;
use crate::log::Log;
use crate::mutant::Mutant;
use crate::scenario::{OwnerKind, Scenario};
use crate::tempo::Tempo;
use crate::verdict::{TWO_COPIES, Verdict};
use crate::watch::Watch;
use operator::Operator;

/// The application's queue.
pub const QUEUE: &str = "app.events";
/// The exchange that feeds it.
pub const EXCHANGE: &str = "app.fanout";
/// The pod that moves.
pub const SOURCE: &str = "consumer-0";
const NODES: [&str; 2] = ["worker-1", "worker-2"];

/// When the migration begins, in milliseconds.
pub const BEGIN: u64 = 50;

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Publish(u8),
    Arrive(String, Message),
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
    IntruderLeaves(u32),
}

/// The API server's record of the migration.
#[derive(Debug, Default)]
struct Record {
    state: Option<State>,
    version: u64,
}

/// The transfer Job.
#[derive(Debug)]
struct Job {
    done_at: u64,
    checkpoint: usize,
    fails: bool,
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
    pub(crate) pods: Vec<Pod>,
    pub(crate) processes: Vec<Option<Process>>,
    /// Whether a process has a turn coming.
    working: Vec<bool>,
    checkpoints: Vec<Memory>,
    job: Option<Job>,
    pulled_at: Option<u64>,
    /// The node for which admission lets the copy in.
    admitted: Option<String>,
    record: Record,
    operator: Operator,
    /// How many messages each publisher has published.
    pub(crate) published: Vec<u32>,
    publishing: bool,
    /// Arrivals keep their order, per publisher and queue.
    arrivals: BTreeMap<(u8, String), u64>,
    flood_until: u64,
    broker_down_until: u64,
    push_fails: bool,
    restore_fails: bool,
    /// What the process that died had acknowledged; its successor begins there.
    pub(crate) base: Vec<u32>,
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
        let spec = spec(&scenario, &tempo);
        let publishers = usize::from(scenario.publishers);
        let mut world = Self {
            rng: Rng::with_seed(scenario.seed ^ 0x5eed),
            mutant,
            tempo,
            spec,
            now: 0,
            events: BinaryHeap::new(),
            next_event: 0,
            broker: Broker::default(),
            pods: Vec::new(),
            processes: Vec::new(),
            working: Vec::new(),
            checkpoints: Vec::new(),
            job: None,
            pulled_at: None,
            admitted: None,
            record: Record::default(),
            operator: Operator::default(),
            published: vec![0; publishers],
            publishing: true,
            arrivals: BTreeMap::new(),
            flood_until: 0,
            broker_down_until: 0,
            push_fails: false,
            restore_fails: false,
            base: vec![0; publishers],
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
        self.broker.declare(QUEUE, self.scenario.quorum, Some(&Binding::plain(EXCHANGE)));
        for waiting in 0..self.scenario.backlog {
            let publisher = u8::try_from(waiting % u32::from(self.scenario.publishers));
            self.publish(publisher.unwrap_or(0));
        }
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

    /// Runs to the end.
    pub fn run(mut self) -> Verdict {
        self.play();
        Verdict::of(self)
    }

    pub(crate) fn play(&mut self) {
        let mut count = 0;
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            count += 1;
            if count > self.tempo.most_events || at > self.tempo.longest {
                self.violations.push(format!("no end after {at} ms: {}", self.waiting_for()));
                break;
            }
            self.happen(event);
            if let Some(mut watch) = self.watch.take() {
                watch.look(self);
                self.watch = Some(watch);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Publish(publisher) => self.publish_and_go_on(publisher),
            Event::Arrive(queue, message) => self.arrive(&queue, message),
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
            Event::Probed(pod) => {
                self.pods[pod].probed = self.pods[pod].process.is_some();
                self.ring();
            }
            Event::Gone(pod) => self.gone(pod),
            Event::Reconcile => self.reconcile(),
            Event::Operate(turn) => self.operate(turn),
            Event::Fault(index) => self.fault(index),
            Event::IntruderLeaves(consumer) => {
                self.broker.drop_consumer(consumer);
                self.wake_all();
            }
        }
    }

    /// Something happens `after` so many milliseconds.
    fn at(&mut self, after: u64, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((self.now + after, self.next_event, event)));
    }

    /// The state as stored, if there is one.
    pub fn state(&self) -> Option<&State> {
        self.record.state.as_ref()
    }

    /// Calls that the operator made.
    pub fn calls(&self) -> u32 {
        self.operator.calls
    }

    /// Milliseconds since the world began.
    pub fn now(&self) -> u64 {
        self.now
    }

    // Publishers.

    fn publish_and_go_on(&mut self, publisher: u8) {
        if !self.publishing {
            return;
        }
        if self.now >= self.broker_down_until {
            self.publish(publisher);
        }
        let after = if let Some(rate) = self.tempo.rate {
            self.until_next(publisher, rate)
        } else {
            self.scenario.interval + self.rng.u64(..=self.scenario.interval / 2)
        };
        self.at(after, Event::Publish(publisher));
    }

    /// How long until a publisher's next message at a rate of so many per second in all, counted
    /// from the beginning, so that a clock of milliseconds does not bend the rate.
    fn until_next(&self, publisher: u8, rate: u64) -> u64 {
        let publishers = u64::from(self.scenario.publishers);
        let backlog = u64::from(self.scenario.backlog);
        let share = backlog / publishers + u64::from(u64::from(publisher) < backlog % publishers);
        let sent = u64::from(self.published[usize::from(publisher)]) - share;
        // Publishers take turns.
        let due = (sent * publishers + u64::from(publisher)) * 1_000 / rate.max(1);
        due.max(self.broker_down_until).saturating_sub(self.now)
    }

    fn publish(&mut self, publisher: u8) {
        let number = &mut self.published[usize::from(publisher)];
        *number += 1;
        if let Some(watch) = &mut self.watch {
            watch.published(publisher, self.now);
        }
        let message = Message { publisher, number: *number };
        for queue in self.broker.route(EXCHANGE) {
            let longest = if self.now < self.flood_until { 280 } else { self.scenario.trail };
            let due = self.now + if longest > 0 { self.rng.u64(..=longest) } else { 0 };
            let last = self.arrivals.entry((publisher, queue.clone())).or_default();
            *last = due.max(*last);
            let after = *last - self.now;
            if after == 0 {
                self.arrive(&queue, message);
            } else {
                self.at(after, Event::Arrive(queue, message));
            }
        }
    }

    fn arrive(&mut self, queue: &str, message: Message) {
        self.broker.enqueue(queue, message);
        for process in 0..self.processes.len() {
            let there = |found: &Process| matches!(&found.consuming, Some((_, q)) if q == queue);
            if self.processes[process].as_ref().is_some_and(there) {
                self.nudge(process);
            }
        }
    }

    // Processes.

    fn with<T>(
        &mut self,
        process: usize,
        act: impl FnOnce(&mut Process, &mut Surroundings) -> T,
    ) -> Option<T> {
        let binding = Binding::plain(EXCHANGE);
        let mut around = Surroundings {
            broker: &mut self.broker,
            primary: QUEUE,
            binding: &binding,
            habits: self.scenario.habits,
            quorum: self.scenario.quorum,
        };
        self.processes[process].as_mut().map(|process| act(process, &mut around))
    }

    /// Gives a process a turn, unless it has one coming.
    fn nudge(&mut self, process: usize) {
        if !std::mem::replace(&mut self.working[process], true) {
            self.at(self.scenario.habits.service.max(1), Event::Work(process));
        }
    }

    fn work(&mut self, process: usize) {
        self.working[process] = false;
        let (turn, watched) = (self.tempo.per_turn, self.watch.is_some());
        let (more, moved, applied) = self
            .with(process, |process, around| {
                let before = process.consuming.clone();
                let applied = watched.then(|| process.memory.ledger.last.clone());
                let more = (0..turn).all(|_| process.work(around));
                (more, process.consuming != before, applied)
            })
            .unwrap_or_default();
        if let Some(before) = applied {
            self.watch_work(process, &before);
        }
        if moved {
            self.arrived(process);
        }
        if more {
            self.nudge(process);
        }
    }

    fn look(&mut self, process: usize) {
        let moved = self.with(process, |process, around| {
            let before = process.consuming.clone();
            process.look(around);
            process.consuming != before
        });
        if moved == Some(true) {
            self.arrived(process);
        }
        self.nudge(process);
    }

    /// A process consumes another queue.
    fn arrived(&mut self, process: usize) {
        let consuming = self.processes[process].as_ref().and_then(|found| found.consuming.clone());
        let Some((_, queue)) = consuming else { return };
        let name = self.processes[process].as_ref().map(|p| p.hostname.clone()).unwrap_or_default();
        self.log.note(self.now, || format!("{name} consumes {queue}"));
        self.crowded(&queue);
        if self.scenario.habits.late_acks > 0 {
            self.at(self.scenario.habits.late_acks, Event::Pay(process));
        }
        self.nudge(process);
        self.at(self.scenario.habits.attention, Event::Look(process));
    }

    /// Invariant 4: at most one copy consumes `Q`.
    fn crowded(&mut self, queue: &str) {
        let copies = self.processes.iter().flatten();
        let here = copies.filter(|p| matches!(&p.consuming, Some((_, q)) if q == queue)).count();
        if queue == QUEUE && here > 1 && !self.bereaved && !self.strayed {
            self.violations.push(format!("{TWO_COPIES} {queue} after {} ms", self.now));
        }
    }

    fn connect(&mut self, process: usize) {
        if self.now < self.broker_down_until {
            let after = self.broker_down_until - self.now + self.scenario.habits.reconnect;
            self.at(after, Event::Connect(process));
            return;
        }
        let connected = self.with(process, |process, around| {
            let already = process.connected;
            if !already {
                process.connect(around);
            }
            !already
        });
        if connected == Some(true) {
            self.arrived(process);
            let soon = self.rng.u64(..=self.scenario.habits.attention);
            self.at(soon, Event::Look(process));
        }
    }

    fn spawn(&mut self, memory: Memory, hostname: &str) -> usize {
        self.processes.push(Some(Process::new(memory, hostname)));
        self.working.push(false);
        let process = self.processes.len() - 1;
        let soon = self.rng.u64(1..=self.scenario.habits.reconnect);
        self.at(soon, Event::Connect(process));
        process
    }

    fn fresh(&self) -> Memory {
        Memory { ledger: Ledger::new(self.base.clone()), told: None }
    }

    /// The process ends; what it held returns to its queue.
    fn kill(&mut self, process: usize) {
        if let Some(mut dead) = self.processes[process].take() {
            dead.disconnect(&mut self.broker);
        }
        self.wake_all();
    }

    /// Whoever consumes a queue to which something was returned has something to do.
    fn wake_all(&mut self) {
        for process in 0..self.processes.len() {
            if self.processes[process].is_some() {
                self.nudge(process);
            }
        }
    }

    /// The control queue of `pod` has an order.
    fn ordered(&mut self, pod: &str) {
        let control = control_queue(pod);
        for process in 0..self.processes.len() {
            if self.processes[process].as_ref().is_some_and(|found| found.control() == control) {
                self.at(self.scenario.habits.attention, Event::Look(process));
            }
        }
    }

    /// No way back any more, as far as the record says.
    fn committed(&self) -> bool {
        matches!(
            self.record.state.as_ref().map(|state| &state.phase),
            Some(
                Phase::Completed { .. }
                    | Phase::Replaying { commit: Some(_), .. }
                    | Phase::Restoring {
                        step: RestoreStep::Prepare(_)
                            | RestoreStep::Admit(_)
                            | RestoreStep::Retry(_),
                        ..
                    }
                    | Phase::Finalizing {
                        step: SwitchStep::Hand
                            | SwitchStep::Open(Some(_))
                            | SwitchStep::Overlap(Some(_))
                            | SwitchStep::Replace(Some(_))
                            | SwitchStep::Retire(_)
                            | SwitchStep::Remove(..),
                        ..
                    }
            )
        )
    }
}

fn spec(scenario: &Scenario, tempo: &Tempo) -> Spec {
    Spec {
        uid: "5e3d0000-0000".to_owned(),
        source_pod: SOURCE.to_owned(),
        container: None,
        target_node: Some(NODES[1].to_owned()),
        repository: Some("registry.example/checkpoints".to_owned()),
        strategy: (scenario.owner == OwnerKind::StatefulSet).then_some(Strategy::Sequential),
        transfer: Transfer::Registry,
        replay_mode: scenario.mode,
        cutoff_ms: tempo.cutoff,
        identity_swap: IdentitySwap::None,
        pin: false,
        queue: Some(QUEUE.to_owned()),
        exchange: EXCHANGE.to_owned(),
        abort: false,
        deleted: false,
    }
}
