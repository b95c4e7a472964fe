//! The protocol against a world that always obliges, and against every refusal.
//!
//! The world here only answers what a step waits for; that no message is lost under faults is the
//! simulator's business.

use std::collections::BTreeMap;

use crate::broker::{
    Binding, Consumer, Counts, Emptiness, Exchange, Queue, QueueType, Survey, Topology, Totals,
};
use crate::control::Control;
use crate::decide::decide;
use crate::effect::Effect;
use crate::observation::{
    Archive, BrokerView, Container, Job, Node, Observation, Owner, Pod, PrePull, Preflight, Rollout,
};
use crate::phase::{
    CutStep, Evidence, Phase, PhaseName, Plan, RestoreStep, State, SwitchStep, Undo,
};
use crate::spec::{IdentitySwap, ReplayMode, Settings, Spec, Strategy, Transfer};
use crate::time::Time;

mod alone;
mod asked;
mod gates;
mod hop;
mod identity;
mod leaving;
mod lost;
mod noticed;
mod park;
mod pin;
mod refused;
mod sequential;
mod set_back;
mod turn;
mod way_back;

const Q: &str = "app.events";

fn spec() -> Spec {
    Spec {
        uid: "0f9d3c1e-aaaa-bbbb-cccc-000000000000".into(),
        source_pod: "consumer-0".into(),
        container: None,
        target_node: Some("worker-2".into()),
        repository: Some("registry.example/checkpoints".into()),
        strategy: None,
        transfer: Transfer::Registry,
        replay_mode: None,
        cutoff_ms: 120_000,
        identity_swap: IdentitySwap::None,
        pin: None,
        queue: Some(Q.into()),
        exchange: "app.fanout".into(),
        abort: false,
        deleted: false,
    }
}

fn pod(uid: &str, node: &str, container: &str) -> Pod {
    let status = Container {
        id: container.into(),
        running: true,
        started: true,
        restarts: 0,
        image: "registry.example/app:1".into(),
    };
    Pod {
        uid: uid.into(),
        node: Some(node.into()),
        ip: Some("10.0.1.5".into()),
        running: true,
        ended: false,
        ready: true,
        containers_ready: true,
        terminating: false,
        owner: Owner::Bare,
        containers: vec!["app".into()],
        statuses: BTreeMap::from([("app".into(), status)]),
        problems: Vec::new(),
        remembers: false,
        has_left: false,
        liveness: None,
        before: None,
        waiting: None,
        ours: false,
    }
}

fn node(name: &str) -> Node {
    Node { name: name.into(), schedulable: true, ready: true, problems: Vec::new(), full: false }
}

fn binding() -> Binding {
    Binding::plain("app.fanout")
}

fn survey() -> Survey {
    Survey {
        version: "4.0.5".into(),
        queue: Some(Queue {
            kind: QueueType::Classic,
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments: BTreeMap::new(),
            policy: BTreeMap::new(),
        }),
        bindings: vec![binding()],
        exchanges: BTreeMap::from([("app.fanout".into(), Exchange { kind: "fanout".into() })]),
        consumers: vec![Consumer {
            tag: "t".into(),
            ack_required: true,
            exclusive: false,
            connection: "c".into(),
            peer: "10.0.1.5".into(),
            heartbeat_s: Some(60),
        }],
        totals: Totals { routed: 100, acknowledged: 97, redelivered: 1 },
        service_rate: None,
        control_queue: true,
        alarms: Vec::new(),
        transactions: Vec::new(),
        statistics_disabled: false,
    }
}

fn preflight() -> Observation {
    Observation {
        acted: Some(Time(0)),
        own: true,
        source: Some(pod("source", "worker-1", "c1")),
        preflight: Some(Preflight {
            nodes: vec![node("worker-1"), node("worker-2")],
            name_taken: false,
            registry: Some(Ok(())),
            survey: Some(survey()),
            set: None,
            rollout: Some(Rollout { replicas: 1, paused: false, complete: true }),
            claims: Some(Vec::new()),
            copy: Some(Ok(())),
            checks: Some(Ok(())),
            memory_bytes: None,
            unready_siblings: 0,
        }),
        broker: Some(BrokerView {
            primary: Some(Counts { ready: 3, consumers: 1 }),
            ..BrokerView::default()
        }),
        ..Observation::default()
    }
}

/// What the operator sees when the promise of `phase` has come true.
fn obliging(phase: &Phase) -> Observation {
    asked::asked(phase, everything(phase))
}

/// What the world looks like then.
fn everything(phase: &Phase) -> Observation {
    let empty = Some(Counts { ready: 0, consumers: 0 });
    let consumed = Some(Counts { ready: 0, consumers: 1 });
    let mut broker = BrokerView {
        primary: empty,
        s1: consumed,
        s2: consumed,
        bindings: Some(vec![binding()]),
        park: consumed,
        park2: consumed,
        wake: Some(Counts { ready: 1, consumers: 0 }),
        target_control: empty,
        consumers: Some(survey().consumers),
        primary_quiet: Some(Emptiness::Proved),
        primary_empty: Some(Emptiness::Proved),
        s1_empty: Some(Emptiness::Proved),
        connected: Some(true),
        totals: Some(Evidence {
            primary: Totals { routed: 140, acknowledged: 120, redelivered: 1 },
            s1: Totals { routed: 30, acknowledged: 30, redelivered: 0 },
            s2: Totals { routed: 40, acknowledged: 35, redelivered: 0 },
        }),
    };
    let mut seen = Observation { acted: Some(Time(0)), ..preflight() };
    let ours = Pod { ours: true, ..pod("target", "worker-2", "c2") };
    match phase {
        Phase::Pending => return preflight(),
        Phase::Checkpointing { plan, step } => {
            let names = &plan.names;
            broker.bindings = Some(match step {
                CutStep::Install => {
                    vec![Binding::plain(&names.gate), Binding::plain(&names.both)]
                }
                _ => vec![Binding::plain(&names.both)],
            });
            if matches!(step, CutStep::Quiesce(_) | CutStep::Arm { .. } | CutStep::Freeze { .. }) {
                broker.s1 = empty;
            }
            seen.prepull = Some(PrePull::Done);
            seen.archive = Some(Archive { path: "/a.tar".into(), millis: 300 });
        }
        Phase::Transferring { .. } => {
            seen.job = Some(Job::Done { image: "r@sha256:0".into(), bytes: 1 });
        }
        Phase::Restoring { step: RestoreStep::Pull, .. } => seen.pulled = Some(PrePull::Done),
        Phase::Restoring { .. }
        | Phase::Replaying { .. }
        | Phase::Finalizing {
            step: SwitchStep::Hand | SwitchStep::Open(_) | SwitchStep::Overlap(_),
            ..
        } => {
            broker.primary = consumed;
            seen.target = Some(ours);
        }
        Phase::Finalizing { .. } => {
            seen.target = Some(ours);
            seen.source = None;
        }
        Phase::Unwinding { plan, step: Undo::Unfeed, .. } => {
            broker.bindings = Some(vec![Binding::plain(&plan.names.both)]);
        }
        Phase::Unwinding { step, .. } => {
            if matches!(step, Undo::Return) {
                broker.primary = consumed;
                broker.s1 = empty;
                broker.s2 = empty;
            }
        }
        Phase::Completed { .. } | Phase::Failed { .. } => {}
    }
    seen.broker = Some(broker);
    seen
}

/// Drives to the end; at step number `abort_at` the user aborts. Returns all states and effects.
fn drive(abort_at: Option<usize>) -> (Vec<State>, Vec<Effect>) {
    drive_in(abort_at, &obliging)
}

/// The same in another world.
fn drive_in(
    abort_at: Option<usize>,
    world: &dyn Fn(&Phase) -> Observation,
) -> (Vec<State>, Vec<Effect>) {
    let settings = Settings::default();
    let mut spec = spec();
    let mut now = Time(1_000_000);
    let mut state = State::new(now);
    let (mut states, mut effects) = (vec![state.clone()], Vec::new());
    for count in 0..100 {
        if state.phase.is_final() {
            return (states, effects);
        }
        now = Time(now.0 + 2_100);
        spec.abort = abort_at.is_some_and(|at| count >= at);
        let decision = decide(&spec, &settings, &state, &world(&state.phase), now);
        if decision.state != state {
            effects.extend(decision.effects);
            state = decision.state;
            states.push(state.clone());
        }
    }
    panic!("no end after {} states, last {:?}", states.len(), states.last());
}

#[test]
fn what_the_broker_counted_is_reported_and_waited_for_only_so_long() {
    let (states, _) = drive(None);
    let Some(Phase::Completed { evidence, .. }) = states.last().map(|state| &state.phase) else {
        panic!("not completed")
    };
    assert_eq!(evidence.primary, Totals { routed: 40, acknowledged: 23, redelivered: 0 });
    assert_eq!(evidence.s1.routed, evidence.s1.acknowledged);

    let retire =
        |s: &&State| matches!(&s.phase, Phase::Finalizing { step: SwitchStep::Retire(_), .. });
    let retiring = states.iter().find(retire).expect("reached");
    let mut seen = obliging(&retiring.phase);
    let stale = seen.broker.as_mut().and_then(|broker| broker.totals.as_mut()).expect("there");
    stale.s1.acknowledged -= 1;
    let settings = Settings::default();
    let ask = |waited: u64| {
        let now = Time(retiring.since.0 + waited);
        decide(&spec(), &settings, retiring, &seen, now).state != *retiring
    };
    assert!(!ask(settings.statistics_ms - 1) && ask(settings.statistics_ms));
}

#[test]
fn both_copies_serve_until_every_node_has_heard_of_the_target() {
    let (states, effects) = drive(None);
    let overlap =
        |s: &&State| matches!(&s.phase, Phase::Finalizing { step: SwitchStep::Overlap(_), .. });
    let overlapping = states.iter().find(overlap).expect("reached");
    let settings = Settings::default();
    let ask = |waited: u64| {
        let (seen, now) = (obliging(&overlapping.phase), Time(overlapping.since.0 + waited));
        decide(&spec(), &settings, overlapping, &seen, now).state != *overlapping
    };
    assert!(!ask(settings.overlap_ms - 1) && ask(settings.overlap_ms));
    let announced = position(&effects, |e| *e == Effect::Announce);
    let created = position(&effects, |e| *e == Effect::CreateTarget);
    assert!(created < announced && announced < position(&effects, |e| *e == Effect::Adopt));
}

fn position(effects: &[Effect], wanted: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().position(wanted).expect("the effect is there")
}

#[test]
fn an_obliging_world_ends_completed_through_the_phases_of_the_specification() {
    let (states, _) = drive(None);
    let mut phases: Vec<PhaseName> = states.iter().map(|state| state.phase.name()).collect();
    phases.dedup();
    assert_eq!(
        phases,
        [
            PhaseName::Pending,
            PhaseName::Checkpointing,
            PhaseName::Transferring,
            PhaseName::Restoring,
            PhaseName::Replaying,
            PhaseName::Finalizing,
            PhaseName::Completed
        ]
    );
}

#[test]
fn the_target_is_told_before_its_pod_exists_and_the_source_goes_after_the_target_is_ready() {
    let (_, effects) = drive(None);
    let told = position(&effects, |e| {
        matches!(e, Effect::Order(order) if order.pod == "consumer-0-shadow"
            && matches!(&order.control, Control::StartReplay { queue, .. } if queue == Q))
    });
    let created = position(&effects, |e| *e == Effect::CreateTarget);
    let opened = position(&effects, |e| *e == Effect::OpenGate);
    let adopted = position(&effects, |e| *e == Effect::Adopt);
    let deleted = position(&effects, |e| *e == Effect::DeleteSource);
    assert!(told < created && created < opened && opened < adopted && adopted < deleted);
}

#[test]
fn the_checkpoint_is_asked_for_once_the_source_stands_still() {
    let (_, effects) = drive(None);
    let parked = position(&effects, |e| {
        matches!(e, Effect::Order(order)
            if matches!(&order.control, Control::StartReplay { queue, .. } if queue.contains("park")))
    });
    let checkpoint = position(&effects, |e| *e == Effect::Checkpoint);
    let woken = position(&effects, |e| matches!(e, Effect::Order(it) if it.waits_in.is_some()));
    assert!(parked < woken && woken + 1 == checkpoint, "{effects:#?}");
}

#[test]
fn an_abort_at_every_step_before_the_commit_point_ends_failed_and_whole() {
    let (forward, _) = drive(None);
    let commit = forward
        .iter()
        .position(|s| matches!(s.phase, Phase::Finalizing { step: SwitchStep::Replace(_), .. }))
        .expect("the switch is reached");
    for at in 0..commit {
        let (states, effects) = drive(Some(at));
        let last = &states.last().expect("a state").phase;
        let Phase::Failed { failure, rolled_back } = last else {
            panic!("abort at step {at} ended in {last:?}")
        };
        assert_eq!(failure.reason, "Aborted");
        assert_eq!(*rolled_back, at > 0, "abort at step {at}");
        if *rolled_back {
            let back = effects.iter().rposition(|e| {
                matches!(e, Effect::Topology(Topology::BindQueue { queue, binding: b })
                    if queue == Q && *b == binding())
            });
            assert!(back.is_some(), "the queue's own binding is restored, abort at step {at}");
        }
    }
}

#[test]
fn a_purge_is_never_repeated_once_the_queue_is_fed_again() {
    let (forward, _) = drive(None);
    for at in 1..forward.len() {
        let (states, _) = drive(Some(at));
        for pair in states.windows(2) {
            if let Phase::Unwinding { step: Undo::Refeed, .. } = pair[1].phase {
                let effects = crate::decide::effects(&spec(), &pair[1].phase);
                assert!(
                    !effects.iter().any(|e| matches!(e, Effect::Topology(Topology::Purge { .. })))
                );
            }
        }
    }
}

#[test]
fn after_the_commit_point_an_abort_changes_nothing() {
    let (forward, _) = drive(None);
    for at in forward.len() - 3..forward.len() {
        let (states, _) = drive(Some(at));
        assert!(matches!(states.last().map(|s| &s.phase), Some(Phase::Completed { .. })));
    }
}

#[test]
fn a_restarted_target_is_given_up_before_the_commit_point() {
    let (states, _) = drive(None);
    let replaying = states.iter().find(|s| s.phase.name() == PhaseName::Replaying);
    let replaying = replaying.expect("reached");
    let mut seen = obliging(&replaying.phase);
    seen.target = Some(Pod { ours: true, ..pod("target", "worker-2", "c3") });
    let decision = decide(&spec(), &Settings::default(), replaying, &seen, replaying.since);
    let Phase::Unwinding { failure, .. } = decision.state.phase else { panic!("not given up") };
    assert_eq!(failure.reason, "TargetLost");
}

#[test]
fn every_wait_has_a_deadline_before_the_commit_point() {
    let (states, _) = drive(None);
    for state in &states {
        let commit = matches!(
            state.phase,
            Phase::Finalizing { step: SwitchStep::Retire(_) | SwitchStep::Remove(..), .. }
        );
        if state.phase.is_final() || commit {
            continue;
        }
        let mut seen =
            Observation { source: obliging(&state.phase).source, ..Observation::default() };
        seen.source.get_or_insert_with(|| pod("source", "worker-1", "c1"));
        if matches!(state.phase.name(), PhaseName::Replaying | PhaseName::Finalizing) {
            seen.target = Some(Pod { ours: true, ready: false, ..pod("target", "worker-2", "c2") });
        }
        let late = Time(state.since.0 + 3_600_000);
        let decision = decide(&spec(), &Settings::default(), state, &seen, late);
        assert!(
            matches!(decision.state.phase, Phase::Unwinding { .. } | Phase::Failed { .. }),
            "{:?} waits for ever",
            state.phase
        );
    }
}

#[test]
fn a_consumer_whose_address_the_broker_does_not_know_yet_is_waited_for() {
    let mut seen = preflight();
    found(&mut seen).consumers[0].peer.clear();
    let state = State::new(Time(0));
    let decision = decide(&spec(), &Settings::default(), &state, &seen, Time(1));
    assert_eq!(decision.state, state);
    assert!(decision.wake.is_some());
}

fn source(seen: &mut Observation) -> &mut Pod {
    seen.source.as_mut().expect("a source")
}

fn checks(seen: &mut Observation) -> &mut Preflight {
    seen.preflight.as_mut().expect("a preflight")
}

fn found(seen: &mut Observation) -> &mut Survey {
    checks(seen).survey.as_mut().expect("a survey")
}
