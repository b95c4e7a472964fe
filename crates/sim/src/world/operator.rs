//! The operator's part of the world: observe → decide → store → act around the real protocol, with
//! everything that can go wrong between two of its calls.

use shadow_protocol::broker::{Binding, Consumer, Exchange, Queue, QueueType, Survey};
use shadow_protocol::decide::{decide, interest};
use shadow_protocol::effect::Effect;
use shadow_protocol::names::{Names, control_queue};
use shadow_protocol::observation::{
    Archive, BrokerView, Heir, Job as SeenJob, Node, Observation, PrePull, Preflight, Trouble,
};
use shadow_protocol::pending::target_name;
use shadow_protocol::phase::{Evidence, Phase, Plan, State};
use shadow_protocol::time::Time;

use super::{EXCHANGE, Event, Job, NODES, QUEUE, SOURCE, World};
use crate::scenario::{CallFault, Fault, OwnerKind};

/// The operator's process. What it remembers is lost when it crashes.
#[derive(Debug, Default)]
pub(super) struct Operator {
    pub(super) running: bool,
    /// It holds a living session with the lock.
    pub(super) session: bool,
    /// Everything is done, and the connections are closed.
    pub(super) finished: bool,
    /// Only the latest turn counts.
    turn: u32,
    /// Calls made so far, by all its lives.
    pub(super) calls: u32,
    cached: Option<(State, u64)>,
    todo: Vec<Effect>,
    done: usize,
    acted: Option<Time>,
    own: bool,
    unanswered: Option<State>,
    archive: Option<Archive>,
    trouble: Option<Trouble>,
    failures: u32,
    waiting: String,
}

impl Operator {
    fn next_step(&mut self) {
        self.todo.clear();
        self.done = 0;
        self.acted = None;
        self.archive = None;
        self.trouble = None;
        self.failures = 0;
    }

    fn fail(&mut self, trouble: Trouble) {
        self.failures += 1;
        self.trouble = Some(trouble);
    }

    fn backoff(&self) -> u64 {
        (10 << self.failures.min(5)).min(200)
    }
}

fn trouble(message: &str, permanent: bool) -> Trouble {
    Trouble { reason: "Injected".to_owned(), message: message.to_owned(), permanent }
}

impl World {
    pub(super) fn operate_in(&mut self, after: u64) {
        self.operator.turn += 1;
        let turn = self.operator.turn;
        self.at(after, Event::Operate(turn));
    }

    /// Something watched has changed.
    pub(super) fn ring(&mut self) {
        let begun = self.record.state.is_some();
        if begun
            && self.operator.running
            && self.operator.todo.is_empty()
            && !self.operator.finished
        {
            self.operate_in(1);
        }
    }

    pub(super) fn crash(&mut self) {
        let Operator { turn, calls, finished, .. } = self.operator;
        self.log.note(self.now, || "the operator crashes".to_owned());
        self.operator = Operator { turn, calls, finished, running: true, ..Operator::default() };
        let after = self.rng.u64(20..200);
        self.operate_in(after);
    }

    /// What the plan has for the next call.
    fn call(&mut self) -> Option<CallFault> {
        let number = self.operator.calls;
        self.operator.calls += 1;
        let planned = |fault: &Fault| match *fault {
            Fault::Call(at, fault) if at == number => Some(fault),
            _ => None,
        };
        let fault = self.scenario.faults.iter().find_map(planned);
        if let Some(fault) = fault {
            self.log.note(self.now, || format!("FAULT {fault:?} at call {number}"));
        }
        fault
    }

    pub(super) fn operate(&mut self, turn: u32) {
        if turn != self.operator.turn || !self.operator.running || self.operator.finished {
            return;
        }
        if self.operator.todo.len() > self.operator.done {
            self.act();
        } else {
            self.cycle();
        }
    }

    fn cycle(&mut self) {
        self.refresh();
        let Some((state, _)) = self.operator.cached.clone() else {
            let state = State::new(Time(self.now));
            self.store(state, Vec::new());
            return;
        };
        let seen = self.observe(&state);
        let decision = decide(&self.spec, &self.tempo.settings, &state, &seen, Time(self.now));
        if decision.state != state {
            self.store(decision.state, decision.effects);
            return;
        }
        if self.operator.waiting != decision.waiting {
            self.operator.waiting.clone_from(&decision.waiting);
            self.log.note(self.now, || format!("waits for {}", decision.waiting));
        }
        if decision.effects.is_empty() {
            let wake = decision.wake.unwrap_or(1_000).max(1);
            let troubled = self.operator.trouble.is_some();
            let wake = if troubled { wake.max(self.operator.backoff()) } else { wake };
            self.operate_in(wake);
        } else {
            self.operator.todo = decision.effects;
            self.act();
        }
    }

    /// Nobody else writes the record, so what is cached is what is stored, unless an answer was
    /// lost.
    fn refresh(&mut self) {
        if self.operator.cached.is_none()
            && let Some(state) = &self.record.state
        {
            self.operator.cached = Some((state.clone(), self.record.version));
        }
    }

    fn store(&mut self, state: State, effects: Vec<Effect>) {
        let fault = self.call();
        if fault == Some(CallFault::CrashBefore) {
            return self.crash();
        }
        if fault == Some(CallFault::Fail) {
            self.operator.fail(trouble("the status was not written", false));
            let after = self.operator.backoff();
            return self.operate_in(after);
        }
        let known = self.operator.cached.as_ref().map_or(0, |(_, version)| *version);
        if known != self.record.version {
            // A conflict: what this process remembers is worthless, unless the state is its own.
            let unanswered = self.operator.unanswered.take();
            if unanswered.is_some() && unanswered == self.record.state {
                self.operator.cached = unanswered.map(|state| (state, self.record.version));
                self.operator.next_step();
                self.operator.own = true;
                return self.operate_in(1);
            }
            let Operator { turn, calls, .. } = self.operator;
            let session = self.operator.session;
            self.operator = Operator { turn, calls, session, running: true, ..Operator::default() };
            return self.operate_in(1);
        }
        self.log.note(self.now, || step_of(&state.phase));
        if let Some(watch) = &mut self.watch {
            watch.stored(self.now, &state.phase);
        }
        if let Some(before) = self.record.state.replace(state.clone()) {
            self.gone_on(before.phase.step(), state.phase.step());
        }
        self.record.version += 1;
        self.at(1, Event::Reconcile);
        match fault {
            Some(CallFault::CrashAfter) => return self.crash(),
            Some(CallFault::LostAnswer) => {
                self.operator.unanswered = self.record.state.clone();
                self.operator.fail(trouble("no answer from the API server", false));
                let after = self.operator.backoff();
                return self.operate_in(after);
            }
            _ => {}
        }
        self.operator.cached = Some((state, self.record.version));
        self.operator.next_step();
        self.operator.own = true;
        self.operator.todo = effects;
        self.operate_in(self.tempo.write);
        if self.operator.todo.is_empty() {
            self.operator.acted = Some(Time(self.now));
        }
    }

    /// The next effect of this step.
    fn act(&mut self) {
        let Some(state) = self.operator.cached.as_ref().map(|(state, _)| state.clone()) else {
            return self.crash();
        };
        if !state.phase.is_final() && !self.take_lock() {
            self.operator.todo.clear();
            let after = self.operator.backoff();
            return self.operate_in(after);
        }
        let Some(effect) = self.operator.todo.get(self.operator.done).cloned() else {
            self.operator.acted = Some(Time(self.now));
            self.operator.todo.clear();
            return self.operate_in(1);
        };
        let fault = self.call();
        if fault == Some(CallFault::CrashBefore) {
            return self.crash();
        }
        if fault == Some(CallFault::Fail) {
            return self.not_done(trouble(&format!("{} failed", effect.name()), false));
        }
        let mut outcome = self.perform_as_mutated(&effect, &state.phase);
        if fault == Some(CallFault::Twice) {
            outcome = self.perform_as_mutated(&effect, &state.phase);
        }
        match fault {
            Some(CallFault::CrashAfter) => return self.crash(),
            Some(CallFault::LostAnswer) => {
                return self.not_done(trouble(&format!("{}: no answer", effect.name()), false));
            }
            _ => {}
        }
        match outcome {
            Ok(archive) => {
                let takes =
                    if archive.is_some() { self.scenario.checkpoint } else { self.tempo.call };
                self.operator.archive = archive.or_else(|| self.operator.archive.take());
                self.operator.done += 1;
                if self.operator.done == self.operator.todo.len() {
                    self.operator.acted = Some(Time(self.now));
                    self.operator.trouble = None;
                    self.operator.failures = 0;
                    self.operator.todo.clear();
                }
                self.operate_in(takes);
            }
            Err(trouble) => self.not_done(trouble),
        }
    }

    fn not_done(&mut self, trouble: Trouble) {
        self.log.note(self.now, || trouble.message.clone());
        self.operator.fail(trouble);
        // Observed and decided anew before it is tried again; what is done stays done.
        self.operator.todo.clear();
        let after = self.operator.backoff();
        self.operate_in(after);
    }

    /// Makes sure that there is a session with the lock.
    fn take_lock(&mut self) -> bool {
        if self.operator.session {
            return true;
        }
        if self.now < self.broker_down_until {
            self.operator.fail(trouble("the broker can't be reached", false));
            return false;
        }
        self.operator.session = true;
        // A lost session begins the step anew.
        let todo = std::mem::take(&mut self.operator.todo);
        self.operator.next_step();
        self.operator.todo = todo;
        true
    }

    fn perform_as_mutated(
        &mut self,
        effect: &Effect,
        phase: &Phase,
    ) -> Result<Option<Archive>, Trouble> {
        let names = Names::new(QUEUE, &self.spec.uid);
        let effect = match self.mutant {
            Some(mutant) => mutant.effect(&names, phase, effect.clone()),
            None => Some(effect.clone()),
        };
        match effect {
            Some(effect) => self.perform(&effect, phase),
            None => Ok(None),
        }
    }

    fn perform(&mut self, effect: &Effect, phase: &Phase) -> Result<Option<Archive>, Trouble> {
        self.log.note(self.now, || describe(effect));
        self.performed.insert(effect.name());
        let plan = phase.plan();
        match effect {
            Effect::Lock | Effect::DeletePrePull | Effect::Announce => {}
            Effect::Topology(change) => {
                self.broker.apply(change).map_err(|why| trouble(&why, false))?;
                for process in 0..self.processes.len() {
                    self.nudge(process);
                }
            }
            Effect::Order(order) => {
                if !self.broker.order(&control_queue(&order.pod), &order.control) {
                    return Err(trouble("no such control queue", false));
                }
                self.ordered(&order.pod);
            }
            Effect::Checkpoint => return self.checkpoint(plan).map(Some),
            Effect::PrePull => self.pulled_at = Some(self.now + self.tempo.pull),
            Effect::CreateJob => self.create_job(phase),
            Effect::DeleteJob => self.job = None,
            Effect::CreateTarget => self.create_target(phase),
            Effect::DeleteTarget => {
                if let Some(target) = plan.and_then(|plan| self.target(plan)) {
                    self.delete_pod(target, 20);
                }
                self.admitted = None;
            }
            Effect::OpenGate => {
                if let Some(target) = plan.and_then(|plan| self.target(plan)) {
                    self.pods[target].gate = Some(true);
                    self.ring();
                }
            }
            Effect::PreferSource | Effect::UnpreferSource => {
                if let Some(source) = plan.and_then(|plan| self.source_of(plan)) {
                    self.pods[source].preferred = *effect == Effect::PreferSource;
                }
            }
            Effect::Adopt => {
                if let Some(target) = plan.and_then(|plan| self.target(plan)) {
                    self.pods[target].owned = true;
                    self.at(1, Event::Reconcile);
                }
            }
            Effect::DeleteSource | Effect::Vacate => {
                if let Some(source) = plan.and_then(|plan| self.source_of(plan)) {
                    let grace = self.rng.u64(self.tempo.grace.clone());
                    self.delete_pod(source, grace);
                }
            }
            Effect::Admit { node } => {
                self.admitted = Some(node.clone());
                self.at(1, Event::Reconcile);
            }
            Effect::Retire => self.admitted = None,
            Effect::CloseBroker => {
                self.operator.session = false;
                self.operator.finished = true;
                self.publishing = false;
            }
        }
        Ok(None)
    }

    fn checkpoint(&mut self, plan: Option<&Plan>) -> Result<Archive, Trouble> {
        let source = plan.and_then(|plan| self.source_of(plan));
        let process = source.and_then(|source| self.pods[source].process);
        let found = process.and_then(|process| self.processes[process].as_mut());
        let (Some(process), Some(found)) = (process, found) else {
            return Err(trouble("the kubelet has no such container", true));
        };
        found.frozen = true;
        self.checkpoints.push(found.memory.clone());
        self.at(self.scenario.checkpoint, Event::Thaw(process));
        let path = (self.checkpoints.len() - 1).to_string();
        Ok(Archive { path, millis: self.scenario.checkpoint })
    }

    fn create_job(&mut self, phase: &Phase) {
        let path = phase.taken().and_then(|taken| taken.archive.path.parse().ok());
        if let (None, Some(checkpoint)) = (&self.job, path) {
            let fails = std::mem::take(&mut self.push_fails);
            let done_at = self.now + self.scenario.transfer;
            self.job = Some(Job { done_at, checkpoint, fails });
        }
    }

    fn create_target(&mut self, phase: &Phase) {
        let (Some(plan), Some(image)) = (phase.plan(), phase.image()) else { return };
        if self.pod(&plan.target_pod).is_none() {
            let checkpoint = image.reference.parse().ok();
            let (name, node) = (plan.target_pod.clone(), plan.target_node.clone());
            let pod = self.create_pod(&name, &node, checkpoint);
            (self.pods[pod].ours, self.pods[pod].gate) = (true, Some(false));
            self.ring();
        }
    }

    fn target(&self, plan: &Plan) -> Option<usize> {
        self.pod(&plan.target_pod).filter(|&pod| self.pods[pod].ours)
    }

    fn source_of(&self, plan: &Plan) -> Option<usize> {
        let same = |pod: &usize| format!("pod-{}", self.pods[*pod].uid) == plan.source_uid;
        self.pod(&plan.source_pod).filter(same)
    }

    fn observe(&mut self, state: &State) -> Observation {
        let wanted = interest(&state.phase);
        let connected = state.phase.is_final() || self.take_lock();
        let names = Names::new(QUEUE, &self.spec.uid);
        let plan = state.phase.plan();
        let broker = (connected && !state.phase.is_final())
            .then(|| self.look_at_broker(&names, plan, wanted));
        let name = plan.map_or(SOURCE, |plan| plan.source_pod.as_str());
        let target = plan.map_or_else(|| target_name(SOURCE), |plan| plan.target_pod.clone());
        let seen =
            |pod: usize| self.pods[pod].seen(self.scenario.owner, self.scenario.habits.remembers);
        let mut observation = Observation {
            acted: self.operator.acted,
            own: self.operator.own,
            trouble: self.operator.trouble.clone(),
            source: self.pod(name).map(seen),
            heir: plan.filter(|_| wanted.heir).and_then(|plan| self.heir(plan)),
            target: self.pod(&target).filter(|&pod| self.pods[pod].ours).map(seen),
            preflight: wanted.preflight.then(|| self.preflight()),
            job: self.job.as_ref().filter(|_| wanted.job).map(|job| self.seen_job(job)),
            prepull: self
                .pulled_at
                .filter(|_| wanted.prepull)
                .map(|at| if self.now >= at { PrePull::Done } else { PrePull::Running }),
            archive: self.operator.archive.clone(),
            broker,
        };
        if let Some(mutant) = self.mutant {
            mutant.see(&state.phase, &mut observation);
        }
        observation
    }

    fn seen_job(&self, job: &Job) -> SeenJob {
        if self.now < job.done_at {
            SeenJob::Running
        } else if job.fails {
            SeenJob::Failed("the registry did not take it".to_owned())
        } else {
            SeenJob::Done { image: job.checkpoint.to_string(), bytes: 1 }
        }
    }

    fn look_at_broker(
        &self,
        names: &Names,
        plan: Option<&Plan>,
        wanted: shadow_protocol::observation::Interest,
    ) -> BrokerView {
        let counts = |asked: bool, queue: &str| asked.then(|| self.broker.counts(queue)).flatten();
        BrokerView {
            primary: counts(wanted.primary, &names.primary),
            s1: counts(wanted.s1, &names.s1),
            s2: counts(wanted.s2, &names.s2),
            bindings: wanted.bindings.then(|| self.broker.bindings(&names.primary)),
            park: counts(wanted.park, &names.park),
            park2: counts(wanted.park2, &names.park2),
            target_control: plan
                .and_then(|plan| counts(wanted.target_control, &control_queue(&plan.target_pod))),
            connected: plan.filter(|_| wanted.connected).map(|plan| {
                self.source_of(plan)
                    .and_then(|pod| self.connection(pod))
                    .is_some_and(|connection| connection == plan.source_connection)
            }),
            primary_quiet: wanted.primary_quiet.then(|| self.broker.quiet(&names.primary)),
            primary_empty: wanted.primary_empty.then(|| self.broker.emptiness(&names.primary)),
            s1_empty: wanted.s1_empty.then(|| self.broker.emptiness(&names.s1)),
            totals: wanted.totals.then(|| Evidence {
                primary: self.broker.totals(&names.primary),
                s1: self.broker.totals(&names.s1),
                s2: self.broker.totals(&names.s2),
            }),
        }
    }

    /// As `shadow_operator::observe::heir`.
    fn heir(&self, plan: &Plan) -> Option<Heir> {
        let candidates = self.pods.iter().rev().filter(|pod| pod.alive() && !pod.ours);
        candidates
            .filter(|pod| match self.scenario.owner {
                OwnerKind::Deployment => pod.owned,
                _ => pod.name == plan.source_pod,
            })
            .find_map(|pod| {
                pod.process?;
                let heir = Heir {
                    pod: pod.name.clone(),
                    uid: format!("pod-{}", pod.uid),
                    container_id: format!("container-{}", pod.container?),
                    listens: self.broker.counts(&control_queue(&pod.name)).is_some(),
                };
                let itself =
                    heir.uid == plan.source_uid && heir.container_id == plan.source_container_id;
                (!itself).then_some(heir)
            })
    }

    fn preflight(&self) -> Preflight {
        let node = |name: &&str| Node {
            name: (*name).to_owned(),
            schedulable: true,
            ready: true,
            problems: Vec::new(),
        };
        Preflight {
            nodes: NODES.iter().map(node).collect(),
            name_taken: false,
            registry: Some(Ok(())),
            survey: Some(self.survey()),
            unready_siblings: 0,
        }
    }

    fn survey(&self) -> Survey {
        let kind = if self.scenario.quorum { QueueType::Quorum } else { QueueType::Classic };
        let source = self.pod(SOURCE).filter(|&pod| self.pods[pod].process.is_some());
        let consumer = source.filter(|&pod| self.connection(pod).is_some()).map(|pod| Consumer {
            tag: "ctag".to_owned(),
            ack_required: true,
            exclusive: false,
            connection: self.connection(pod).unwrap_or_default(),
            peer: format!("10.0.0.{}", self.pods[pod].uid),
        });
        Survey {
            version: "4.0.5".to_owned(),
            queue: Some(Queue {
                kind,
                durable: true,
                exclusive: false,
                auto_delete: false,
                arguments: std::collections::BTreeMap::new(),
                policy: std::collections::BTreeMap::new(),
            }),
            bindings: vec![Binding::plain(EXCHANGE)],
            exchanges: [(EXCHANGE.to_owned(), Exchange { kind: "fanout".to_owned() })].into(),
            consumers: consumer.into_iter().collect(),
            totals: self.broker.totals(QUEUE),
            service_rate: self.tempo.service_rate,
            control_queue: self.broker.counts(&control_queue(SOURCE)).is_some(),
            alarms: Vec::new(),
            transactions: Vec::new(),
            statistics_disabled: false,
        }
    }

    fn connection(&self, pod: usize) -> Option<String> {
        let process = self.processes[self.pods[pod].process?].as_ref()?;
        process.connected.then(|| format!("connection {}", process.connections))
    }

    /// What it waits for, for the verdict on a run without an end.
    pub(super) fn waiting_for(&self) -> String {
        let step = self.record.state.as_ref().map(|state| step_of(&state.phase));
        format!("{}, waiting for {}", step.unwrap_or_default(), self.operator.waiting)
    }
}

/// The phase and its step, in short.
pub(super) fn step_of(phase: &Phase) -> String {
    let step = match phase {
        Phase::Checkpointing { step, .. } => format!("{step:?}"),
        Phase::Restoring { step, .. } => format!("{step:?}"),
        Phase::Finalizing { step, .. } => format!("{step:?}"),
        Phase::Unwinding { step, reached, failure, .. } => {
            format!("undo {step:?} from {reached:?} ({})", failure.reason)
        }
        Phase::Failed { failure, .. } => format!("{}: {}", failure.reason, failure.message),
        _ => String::new(),
    };
    format!("=> {} {step}", phase.name().as_str())
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Topology(change) => format!("   {change:?}"),
        Effect::Order(order) => format!("   to {}: {:?}", order.pod, order.control),
        other => format!("   {}", other.name()),
    }
}
