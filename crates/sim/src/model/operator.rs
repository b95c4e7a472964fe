//! The operator of the model: the real `interest` and `decide`, with what they see made out of a
//! situation, and their effects carried out one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use shadow_protocol::broker::{Binding, Counts, Emptiness, Topology};
use shadow_protocol::decide::{Decision, decide, interest};
use shadow_protocol::effect::Effect;
use shadow_protocol::observation::{
    self, Archive, BrokerView, Container, Heir, Job, Observation, Owner, PrePull, Turn,
};
use shadow_protocol::phase::{
    AloneStep, CutStep, Hop, ParkStep, Phase, Pin, Plan, RestoreStep, State,
};
use shadow_protocol::spec::{IdentitySwap, ReplayMode, Settings, Spec, Strategy, Transfer};

use super::application::{Memory, Pod};
use super::clock::{self, NOW};
use super::situation::{Operator, Record, SOURCE, Situation, TARGET, Who};
use super::wire::{EXCHANGE, NAMES, Place, UID};
use crate::mutant::Mutant;

const CONTAINER: &str = "app";
/// The source's connection, as long as its process lives.
const CONNECTION: &str = "first";

/// What does not change in a run.
#[derive(Debug)]
pub struct Constants {
    spec: Spec,
    settings: Settings,
    mutant: Option<Mutant>,
}

impl Constants {
    pub fn new(mutant: Option<Mutant>) -> Self {
        let spec = Spec {
            uid: UID.to_owned(),
            source_pod: SOURCE.to_owned(),
            container: None,
            target_node: None,
            repository: None,
            strategy: None,
            transfer: Transfer::Registry,
            replay_mode: None,
            cutoff_ms: clock::CUTOFF,
            identity_swap: IdentitySwap::None,
            pin: None,
            queue: Some(NAMES.primary.clone()),
            exchange: EXCHANGE.to_owned(),
            abort: false,
            deleted: false,
        };
        let mut settings = clock::settings();
        if let Some(mutant) = mutant {
            mutant.settings(&mut settings);
        }
        Self { spec, settings, mutant }
    }

    /// What the operator makes of the situation.
    pub fn decide(&self, situation: &Situation) -> Option<Decision> {
        if !situation.operator.todo.is_empty() || situation.phase().is_final() {
            return None;
        }
        let state = &situation.record.state;
        let mut seen = observe(situation);
        if let Some(mutant) = self.mutant {
            mutant.see(&state.phase, &mut seen);
        }
        let aborting;
        let spec = if situation.abort {
            aborting = Spec { abort: true, ..self.spec.clone() };
            &aborting
        } else {
            &self.spec
        };
        let decision = decide(spec, &self.settings, state, &seen, NOW);
        let waits = decision.effects.is_empty() && decision.state == *state;
        (!waits).then_some(decision)
    }

    /// What is left of the effects of a state.
    fn todo(&self, phase: &Phase, effects: Vec<Effect>) -> impl Iterator<Item = Effect> {
        effects.into_iter().filter_map(move |effect| match self.mutant {
            Some(mutant) => mutant.effect(&NAMES, phase, effect),
            None => Some(effect),
        })
    }

    /// The state is stored; its effects come next.
    pub fn go_on(&self, situation: &mut Situation, decision: Decision) {
        let Decision { state, effects, .. } = decision;
        if state != situation.record.state || situation.operator.acted.is_some() {
            situation.record = Record::new(state);
            // It is read only where the copy is created.
            let phase = &situation.record.state.phase;
            let own = matches!(phase, Phase::Restoring { step: RestoreStep::Beside, .. });
            situation.operator = Operator { own, ..Operator::default() };
        }
        let todo = self.todo(&situation.record.state.phase, effects).collect();
        situation.operator.todo = todo;
        done(&mut situation.operator);
    }
}

/// The migration begins after its preflight, which touches nothing.
pub fn begin(mode: ReplayMode, remembers: bool) -> State {
    let step = match mode {
        ReplayMode::Park => CutStep::Park(ParkStep::Declare),
        ReplayMode::Cutoff | ReplayMode::Drain => CutStep::Install,
        ReplayMode::Alone => CutStep::Alone(AloneStep::Pull),
    };
    let plan = Plan {
        hop: Hop::Only,
        names: NAMES.clone(),
        source_pod: SOURCE.to_owned(),
        source_uid: uid(Who::Source),
        source_container_id: "1".to_owned(),
        source_connection: CONNECTION.to_owned(),
        remembers,
        source_node: String::new(),
        container: CONTAINER.to_owned(),
        base_image: String::new(),
        target_pod: TARGET.to_owned(),
        target_node: String::new(),
        owner: Owner::Bare,
        strategy: Strategy::ShadowPod,
        transfer: Transfer::Registry,
        repository: String::new(),
        consumers: 1,
        bindings: vec![Binding::plain(EXCHANGE)],
        before: shadow_protocol::broker::Totals::default(),
        mode,
        mode_reason: String::new(),
        replicas: None,
        pin: Pin::No,
        cutoff_ms: clock::CUTOFF,
        wake_after_ms: clock::WAKE,
    };
    State::new(NOW).go(Phase::Checkpointing { plan, step }, NOW)
}

fn uid(who: Who) -> String {
    who.pod().to_owned()
}

/// When nothing is left to do, the step has been acted on.
fn done(operator: &mut Operator) {
    if operator.todo.is_empty() {
        operator.acted = Some(NOW);
    }
}

/// Carries out the next effect.
pub fn act(situation: &mut Situation) {
    let Some(effect) = situation.operator.todo.pop_front() else { return };
    if perform(situation, &effect) {
        done(&mut situation.operator);
    } else {
        // Looked at and decided anew before it is tried again.
        situation.operator.todo.clear();
    }
}

fn perform(situation: &mut Situation, effect: &Effect) -> bool {
    match effect {
        Effect::Topology(change) => return Arc::make_mut(&mut situation.wire).change(change),
        Effect::Order(order) => return Arc::make_mut(&mut situation.wire).order(order),
        Effect::Checkpoint => return checkpoint(situation),
        Effect::CreateTarget => create_target(situation),
        Effect::DeleteTarget => terminate(situation, Who::Target),
        Effect::DeleteSource => terminate(situation, Who::Source),
        Effect::OpenGate => {
            if let Some(target) = &mut situation.target {
                target.open = true;
            }
        }
        // The pod is nobody's; its image is pulled, and the Job is done, as soon as asked for; one
        // operator at a time.
        Effect::Lock
        | Effect::PrePull
        | Effect::PullCheckpoint
        | Effect::DeletePrePull
        | Effect::CreateJob
        | Effect::DeleteJob
        | Effect::Announce
        | Effect::PreferSource
        | Effect::UnpreferSource
        | Effect::Adopt
        | Effect::Pin
        | Effect::Unpin
        | Effect::ScaleDown { .. }
        | Effect::ScaleUp { .. }
        | Effect::Vacate
        | Effect::MakeRoom
        | Effect::Hold
        | Effect::Release
        | Effect::Admit { .. }
        | Effect::Retire
        | Effect::CloseBroker => {}
    }
    true
}

/// Whether an effect is the operator's own affair in this situation: nobody else can tell whether
/// it has been carried out, and it does not matter to it what others do first.
pub fn private(situation: &Situation, effect: &Effect) -> bool {
    match effect {
        Effect::Topology(
            Topology::BindQueue { .. }
            | Topology::UnbindQueue { .. }
            | Topology::BindExchange { .. }
            | Topology::UnbindExchange { .. }
            | Topology::DeclareExchange { .. }
            | Topology::DeleteExchange { .. },
        ) => !cuts(situation, effect),
        Effect::Topology(Topology::DeleteQueue { name } | Topology::Move { from: name, .. }) => {
            Place::of(name).is_some_and(|place| idle(situation, place))
        }
        // A copy that is there may be reading its control queue.
        Effect::Topology(Topology::DeclareControlQueue { .. }) | Effect::DeleteTarget => {
            situation.target.is_none()
        }
        Effect::DeleteSource => situation.source.is_none(),
        // Of side queues: nobody goes there before it is told to. Of the cluster, only the operator
        // asks for the rest.
        _ => !matches!(
            effect,
            Effect::Topology(Topology::Purge { .. })
                | Effect::Order(_)
                | Effect::Checkpoint
                | Effect::CreateTarget
        ),
    }
}

/// Nothing is in a queue, nothing is on its way there, and nobody is, or is sent, there.
fn idle(situation: &Situation, place: Place) -> bool {
    let empty = situation.wire.counts(place.name()) == Some(Counts::default());
    let settled = [Who::Source, Who::Target].into_iter().all(|who| {
        let going = situation.process(who).is_some_and(|process| process.going.is_some());
        situation.wire.orders(who.pod()) == 0 && !going
    });
    empty
        && settled
        && situation.wire.quiet(place) == Emptiness::Proved
        && !situation.trailing.keys().any(|(_, queue)| *queue == place)
        && !situation.wire.route().contains(&place)
}

/// Whether an effect changes where messages go.
pub fn cuts(situation: &Situation, effect: &Effect) -> bool {
    let Effect::Topology(change) = effect else { return false };
    let mut after = (*situation.wire).clone();
    after.change(change) && after.route() != situation.wire.route()
}

/// The archive's path is what is in it.
fn checkpoint(situation: &mut Situation) -> bool {
    let memory = situation.process(Who::Source).map(|process| &process.memory);
    let path = memory.and_then(|memory| serde_json::to_string(memory).ok());
    let found = path.is_some();
    situation.operator.archive = path.map(|path| Archive { path, millis: 0 });
    found
}

/// What is in an archive.
pub fn unpack(path: &str) -> Option<Memory> {
    serde_json::from_str(path).ok()
}

fn create_target(situation: &mut Situation) {
    let image = situation.phase().image().and_then(|image| unpack(&image.reference));
    if let (None, Some(image)) = (&situation.target, image) {
        let pod = Pod { container: 0, process: None, image, terminating: false, open: false };
        situation.target = Some(pod);
    }
}

fn terminate(situation: &mut Situation, who: Who) {
    if let Some(pod) = situation.pod_mut(who) {
        pod.terminating = true;
    }
}

fn observe(situation: &Situation) -> Observation {
    let phase = situation.phase();
    let wanted = interest(phase);
    let pod = |who| situation.pod(who).map(|pod| seen(pod, who, situation.habits.remembers));
    Observation {
        turn: Turn::default(),
        standby: None,
        acted: situation.operator.acted,
        own: situation.operator.own,
        trouble: None,
        source: pod(Who::Source),
        heir: phase.plan().filter(|_| wanted.heir).and_then(|plan| heir(situation, plan)),
        target: pod(Who::Target),
        pinned: false,
        preflight: None,
        job: phase
            .taken()
            .filter(|_| wanted.job)
            .map(|taken| Job::Done { image: taken.archive.path.clone(), bytes: 0 }),
        prepull: wanted.prepull.then_some(PrePull::Done),
        pulled: wanted.pulled.then_some(PrePull::Done),
        archive: situation.operator.archive.clone(),
        broker: Some(look(situation, wanted)),
    }
}

/// All at one instant. The statistics are never there in time: what waits for them waits longest.
fn look(situation: &Situation, wanted: observation::Interest) -> BrokerView {
    let wire = &situation.wire;
    let counts = |asked: bool, place: Place| asked.then(|| wire.counts(place.name())).flatten();
    let control = || wire.counts(&shadow_protocol::names::control_queue(TARGET));
    BrokerView {
        primary: counts(wanted.primary, Place::Q),
        s1: counts(wanted.s1, Place::S1),
        s2: counts(wanted.s2, Place::S2),
        bindings: wanted.bindings.then(|| wire.bindings()),
        park: counts(wanted.park, Place::Park),
        park2: counts(wanted.park2, Place::Park2),
        wake: wanted.wake.then(|| wire.counts(&NAMES.wake)).flatten(),
        target_control: wanted.target_control.then(control).flatten(),
        consumers: None,
        primary_quiet: wanted.primary_quiet.then(|| wire.quiet(Place::Q)),
        primary_empty: wanted.primary_empty.then(|| wire.emptiness(Place::Q)),
        s1_empty: wanted.s1_empty.then(|| wire.emptiness(Place::S1)),
        connected: wanted.connected.then(|| situation.process(Who::Source).is_some()),
        totals: None,
    }
}

fn seen(pod: &Pod, who: Who, remembers: bool) -> observation::Pod {
    let running = pod.process.is_some();
    let status = Container {
        id: pod.container.to_string(),
        running,
        started: pod.container > 0,
        restarts: 0,
        image: String::new(),
    };
    observation::Pod {
        uid: uid(who),
        node: None,
        ip: None,
        running,
        ended: false,
        ready: running && pod.open,
        containers_ready: running,
        terminating: pod.terminating,
        owner: Owner::Bare,
        containers: Vec::new(),
        statuses: BTreeMap::from([(CONTAINER.to_owned(), status)]),
        problems: Vec::new(),
        remembers,
        has_left: false,
        liveness: None,
        before: None,
        waiting: None,
        ours: who == Who::Target,
    }
}

/// The new run of the source's container.
fn heir(situation: &Situation, plan: &Plan) -> Option<Heir> {
    let pod = situation.source.as_ref().filter(|pod| pod.process.is_some() && !pod.terminating)?;
    let container_id = pod.container.to_string();
    (container_id != plan.source_container_id).then(|| Heir {
        pod: SOURCE.to_owned(),
        uid: uid(Who::Source),
        container_id,
        listens: true,
    })
}
