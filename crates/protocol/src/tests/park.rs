//! Mode `Park`, and how a mode is chosen.

use super::*;
use crate::phase::{Commit, ParkStep, Reached};

fn asked(mode: Option<ReplayMode>, seen: &Observation) -> Phase {
    decided(&Spec { replay_mode: mode, ..spec() }, seen)
}

fn decided(spec: &Spec, seen: &Observation) -> Phase {
    let state = State::new(Time(1));
    decide(spec, &Settings::default(), &state, seen, Time(2)).state.phase
}

fn remembering() -> Observation {
    let mut seen = preflight();
    seen.source.as_mut().expect("there").remembers = true;
    seen
}

fn chosen(phase: &Phase) -> (ReplayMode, String) {
    let plan = phase.plan().expect("accepted");
    (plan.mode, plan.mode_reason.clone())
}

/// What the world looks like when the promise of `phase` has come true in mode `Park`.
fn obliging_in_park(phase: &Phase) -> Observation {
    let mut seen = obliging(phase);
    seen.source = Some(Pod { remembers: true, ..pod("source", "worker-1", "c1") });
    let broker = seen.broker.as_mut().expect("there");
    let empty = Some(Counts::default());
    match phase {
        Phase::Pending => broker.primary = Some(Counts { ready: 9, consumers: 1 }),
        Phase::Checkpointing { step: CutStep::Park(ParkStep::Leave { .. }), .. } => {
            broker.park = empty;
        }
        Phase::Unwinding { .. } => {
            (broker.park, broker.park2) = (empty, empty);
            broker.primary = Some(Counts { ready: 9, consumers: 1 });
        }
        Phase::Finalizing { step, .. } => {
            if matches!(step, SwitchStep::Replace(_) | SwitchStep::Retire(_)) {
                seen.source = None;
            }
        }
        _ => {}
    }
    seen
}

/// Drives to the end in mode `Park`; at state number `abort_at` the user aborts.
fn drive_in_park(abort_at: Option<usize>) -> (Vec<State>, Vec<Effect>) {
    let settings = Settings::default();
    let mut spec = Spec { replay_mode: Some(ReplayMode::Park), ..spec() };
    let mut now = Time(1_000_000);
    let mut state = State::new(now);
    let (mut states, mut effects) = (vec![state.clone()], Vec::new());
    for count in 0..100 {
        if state.phase.is_final() {
            return (states, effects);
        }
        now = Time(now.0 + 2_100);
        spec.abort = abort_at.is_some_and(|at| count >= at);
        let decision = decide(&spec, &settings, &state, &obliging_in_park(&state.phase), now);
        if decision.state != state {
            effects.extend(decision.effects);
            state = decision.state;
            states.push(state.clone());
        }
    }
    panic!("no end, last {:?}", states.last());
}

#[test]
fn the_feed_is_never_touched_and_the_copy_goes_on_before_the_source_ends() {
    let (states, effects) = drive_in_park(None);
    assert!(matches!(states.last().map(|s| &s.phase), Some(Phase::Completed { .. })));
    let order = |pod: &str, control: &Control| {
        position(
            &effects,
            |e| matches!(e, Effect::Order(order) if order.pod == pod && order.control == *control),
        )
    };
    let checkpoint = position(&effects, |e| *e == Effect::Checkpoint);
    let created = position(&effects, |e| *e == Effect::CreateTarget);
    let handed = order("consumer-0-shadow", &Control::EndReplay);
    let shown = position(&effects, |e| *e == Effect::Announce);
    let deleted = position(&effects, |e| *e == Effect::DeleteSource);
    assert!(checkpoint < created && created < handed && handed < shown && shown < deleted);
    let removed = position(&effects, |e| *e == Effect::Retire);
    assert!(!effects[..removed].iter().any(|e| {
        matches!(e, Effect::Topology(Topology::BindQueue { .. } | Topology::UnbindQueue { .. }))
    }));
    assert!(!states.iter().any(|s| s.phase.name() == PhaseName::Replaying));
}

#[test]
fn an_abort_ends_whole_until_the_target_may_have_read_its_order() {
    let (forward, _) = drive_in_park(None);
    let hand = |s: &State| matches!(s.phase, Phase::Finalizing { step: SwitchStep::Hand, .. });
    let hand = forward.iter().position(hand).expect("reached");
    for at in 1..hand {
        let (states, effects) = drive_in_park(Some(at));
        let Some(Phase::Failed { rolled_back: true, .. }) = states.last().map(|s| &s.phase) else {
            panic!("abort at {at}: {:?}", states.last())
        };
        let back = |e: &Effect| matches!(e, Effect::Order(o) if o.control == Control::EndReplay);
        assert!(effects.iter().any(back), "abort at {at}: the source is sent back");
    }
    for at in hand..forward.len() {
        let (states, _) = drive_in_park(Some(at));
        assert!(matches!(states.last().map(|s| &s.phase), Some(Phase::Completed { .. })));
    }
}

#[test]
fn a_copy_that_died_before_it_read_its_order_is_given_up() {
    let (forward, _) = drive_in_park(None);
    let handing = forward
        .iter()
        .find(|s| matches!(s.phase, Phase::Finalizing { step: SwitchStep::Hand, .. }))
        .expect("reached");
    let ask = |ready: u64, readers: u32, back: u32, there: bool| {
        let mut seen = obliging_in_park(&handing.phase);
        seen.target = seen.target.filter(|_| there);
        let broker = seen.broker.as_mut().expect("there");
        broker.target_control = Some(Counts { ready, consumers: readers });
        broker.primary = Some(Counts { ready: 7, consumers: back });
        decide(&spec(), &Settings::default(), handing, &seen, handing.since).state.phase
    };
    let committed =
        |phase: Phase| matches!(phase, Phase::Finalizing { step: SwitchStep::Open(Some(_)), .. });
    assert!(matches!(ask(1, 0, 0, false), Phase::Unwinding { reached: Reached::Parked, .. }));
    assert!(committed(ask(0, 0, 0, false)), "it has obeyed and died");
    assert!(committed(ask(0, 1, 1, true)), "it has obeyed");
    // Delivered, maybe to a process whose node has lost power.
    for unproved in
        [ask(0, 1, 0, true), ask(0, 1, 0, false), ask(0, 0, 0, true), ask(1, 1, 1, true)]
    {
        assert_eq!(unproved, handing.phase);
    }
}

#[test]
fn after_the_commit_a_crash_of_the_copy_is_its_owners_business() {
    let (forward, _) = drive_in_park(None);
    let commit = |s: &State| match s.phase {
        Phase::Finalizing { step: SwitchStep::Overlap(Some(commit)), .. } => Some(commit),
        _ => None,
    };
    let (state, commit): (&State, Commit) =
        forward.iter().find_map(|s| commit(s).map(|commit| (s, commit))).expect("reached");
    let mut seen = obliging_in_park(&state.phase);
    seen.target.as_mut().expect("there").ended = true;
    let next = decide(&spec(), &Settings::default(), state, &seen, state.since).state.phase;
    let Phase::Finalizing { step: SwitchStep::Replace(Some(same)), .. } = next else {
        panic!("{next:?}")
    };
    assert_eq!(same.at(), commit.at());
}

#[test]
fn park_is_refused_where_the_copy_would_wake_on_the_primary_queue() {
    let Phase::Failed { failure, rolled_back: false } = asked(Some(ReplayMode::Park), &preflight())
    else {
        panic!("accepted")
    };
    assert!(failure.message.contains("remembers-queue"), "{}", failure.message);
    let (mode, why) = chosen(&asked(Some(ReplayMode::Park), &remembering()));
    assert_eq!((mode, why.as_str()), (ReplayMode::Park, "asked for"));
}

#[test]
fn without_a_wish_the_mode_is_chosen_and_the_reason_is_written() {
    assert_eq!(chosen(&asked(None, &preflight())).0, ReplayMode::Cutoff);
    let deep = |rate: Option<u64>| {
        let mut seen = remembering();
        let preflight = seen.preflight.as_mut().expect("there");
        preflight.survey.as_mut().expect("there").service_rate = rate;
        seen.broker.as_mut().expect("there").primary = Some(Counts { ready: 1_600, consumers: 1 });
        chosen(&asked(None, &seen))
    };
    let (mode, why) = deep(Some(100));
    assert_eq!(mode, ReplayMode::Park);
    assert!(why.contains("1600") && why.contains("16 s"), "{why}");
    assert_eq!(deep(Some(200)).0, ReplayMode::Cutoff);
    assert_eq!(deep(None).0, ReplayMode::Cutoff, "an unknown rate is not guessed");

    // A feed that can't be diverted.
    let unbound = |mut seen: Observation| {
        let preflight = seen.preflight.as_mut().expect("there");
        preflight.survey.as_mut().expect("there").bindings.clear();
        seen
    };
    let direct = |seen| decided(&Spec { exchange: String::new(), ..spec() }, &unbound(seen));
    let (mode, why) = chosen(&direct(remembering()));
    assert_eq!(mode, ReplayMode::Park);
    assert!(why.contains("default exchange"), "{why}");
    let Phase::Failed { failure, .. } = direct(preflight()) else { panic!("accepted") };
    assert_eq!(failure.reason, "NoBinding");

    // A feed that somebody has diverted: another migration, perhaps, whose operator is down.
    for mode in [None, Some(ReplayMode::Park)] {
        let phase = asked(mode, &unbound(remembering()));
        let Phase::Failed { failure, .. } = phase else { panic!("accepted") };
        assert_eq!(failure.reason, "ExchangeNotBound");
    }
}

/// Two pods consume the queue: the source at `10.0.1.5`, and another one.
fn shared(mut seen: Observation) -> Observation {
    let survey = seen.preflight.as_mut().and_then(|it| it.survey.as_mut()).expect("there");
    let mut other = survey.consumers[0].clone();
    (other.peer, other.connection) = ("10.0.3.3".into(), "theirs".into());
    survey.consumers.insert(0, other);
    seen.broker.as_mut().expect("there").primary = Some(Counts { ready: 3, consumers: 2 });
    seen
}

#[test]
fn a_queue_with_several_consumers_is_parked() {
    let phase = asked(None, &shared(remembering()));
    let plan = phase.plan().expect("accepted");
    assert_eq!((plan.mode, plan.consumers), (ReplayMode::Park, 2));
    assert!(plan.mode_reason.contains("2 consumers"), "{}", plan.mode_reason);
    assert_ne!(plan.source_connection, "theirs");
    let Phase::Failed { failure, .. } = asked(Some(ReplayMode::Cutoff), &shared(remembering()))
    else {
        panic!("accepted")
    };
    assert_eq!(failure.reason, "SecondConsumer");
    assert!(failure.message.contains("replayMode Park"), "{}", failure.message);
}

/// Who consumes `Q`, by address, is what counts where several do.
#[test]
fn who_leaves_a_shared_queue_and_who_comes_is_told_by_address() {
    let phase = asked(None, &shared(remembering()));
    let plan = phase.plan().expect("accepted").clone();
    let stop = Phase::Checkpointing { plan, step: CutStep::Park(ParkStep::Stop) };
    let state = State::new(Time(1)).go(stop, Time(2));
    let goes_on = |count: u32, peers: &[&str]| {
        let mut seen = obliging_in_park(&state.phase);
        let broker = seen.broker.as_mut().expect("there");
        broker.primary = Some(Counts { ready: 9, consumers: count });
        let own = survey().consumers[0].clone();
        let at = |peer: &&str| Consumer { peer: (*peer).to_owned(), ..own.clone() };
        broker.consumers = Some(peers.iter().map(at).collect());
        decide(&spec(), &Settings::default(), &state, &seen, Time(3)).state != state
    };
    assert!(goes_on(1, &["::ffff:10.0.3.3"]));
    assert!(!goes_on(2, &["10.0.3.3", "10.0.1.5"]), "it is still there");
    assert!(!goes_on(1, &["10.0.1.5"]), "another one has left");
    assert!(!goes_on(1, &[]), "another one has left, and this one holds messages still");
    assert!(!goes_on(2, &["10.0.3.3", "10.0.4.4"]), "another one has come");
}
