//! The second hop of an identity swap.

use super::*;
use crate::phase::{Reached, RestoreStep};

fn settings() -> Settings {
    Settings { admission: true, ..Settings::default() }
}

fn swap() -> Spec {
    Spec {
        strategy: Some(Strategy::ShadowPod),
        identity_swap: IdentitySwap::ExchangeFence,
        ..spec()
    }
}

fn of_the_set(pod: Pod) -> Pod {
    Pod { owner: Owner::StatefulSet("consumer".into()), ..pod }
}

/// The pod that the StatefulSet's controller has made, let in by admission.
fn returned() -> Pod {
    of_the_set(Pod { ours: true, ip: Some("10.0.2.7".into()), ..pod("copy", "worker-2", "c3") })
}

/// What the world looks like when the promise of `phase` has come true.
fn world(phase: &Phase) -> Observation {
    let mut seen = everything(phase);
    let old = of_the_set(pod("source", "worker-1", "c1"));
    let shadow = Pod { ours: true, ip: Some("10.0.2.6".into()), ..pod("target", "worker-2", "c2") };
    let second = phase.plan().is_some_and(|plan| plan.base().is_some());
    let broker = seen.broker.as_mut().expect("a broker");
    if let (true, Some(plan)) = (second, phase.plan()) {
        seen.standby = plan.standby().map(|_| old);
        seen.source = Some(shadow);
        seen.target = None;
        let bindings = broker.bindings.get_or_insert_default();
        if matches!(phase, Phase::Finalizing { .. }) {
            bindings.push(binding());
        }
        bindings.extend(
            plan.bindings
                .clone()
                .into_iter()
                .filter(|_| matches!(phase, Phase::Unwinding { step: Undo::Remove, .. })),
        );
        match phase {
            Phase::Restoring { step: RestoreStep::MakeRoom, .. } => seen.standby = None,
            Phase::Restoring { step: RestoreStep::Admit(_), .. } | Phase::Replaying { .. } => {
                seen.target = Some(returned());
            }
            Phase::Finalizing { step, .. } => {
                seen.target = Some(returned());
                if !matches!(step, SwitchStep::Open(_) | SwitchStep::Overlap(_)) {
                    seen.source = None;
                }
            }
            _ => {}
        }
        return super::asked::asked(phase, seen);
    }
    seen.source = Some(old);
    match phase {
        Phase::Restoring { .. } | Phase::Replaying { .. } | Phase::Finalizing { .. } => {
            seen.target = Some(shadow);
        }
        _ => {}
    }
    if let Phase::Finalizing { step: SwitchStep::Hop { vacated }, .. } = phase {
        broker.primary = Some(Counts { ready: 0, consumers: 1 });
        let survey = seen.preflight.as_mut().and_then(|it| it.survey.as_mut());
        let consumers = &mut survey.expect("a survey").consumers;
        (consumers[0].peer, consumers[0].connection) = ("::ffff:10.0.2.6".into(), "c6".into());
        seen.source = seen.source.filter(|_| !vacated);
    }
    super::asked::asked(phase, seen)
}

type Spoil<'a> = &'a dyn Fn(&Phase, &mut Observation);

/// Drives to the end; `spoil` has the last word about the world.
fn drive_swap(spoil: Spoil) -> (Vec<State>, Vec<Effect>) {
    let mut now = Time(1_000_000);
    let mut state = State::new(now);
    let (mut states, mut effects) = (vec![state.clone()], Vec::new());
    for _ in 0..200 {
        if state.phase.is_final() {
            return (states, effects);
        }
        now = Time(now.0 + 5_100);
        let mut seen = world(&state.phase);
        spoil(&state.phase, &mut seen);
        let decision = decide(&swap(), &settings(), &state, &seen, now);
        if decision.state != state {
            effects.extend(decision.effects);
            state = decision.state;
            states.push(state.clone());
        }
    }
    panic!("no end, last {:?}", states.last());
}

fn steps(states: &[State]) -> Vec<&'static str> {
    states.iter().map(|state| state.phase.step().name()).collect()
}

/// Once, in the second hop, at the step of this name.
fn once_at(step: &'static str) -> impl Fn(&Phase) -> bool {
    let done = std::cell::Cell::new(false);
    move |phase: &Phase| {
        let second = phase.plan().is_some_and(|plan| plan.base().is_some());
        let here = second && phase.step().name() == step && !done.get();
        done.set(done.get() || here);
        here
    }
}

fn count(effects: &[Effect], wanted: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().filter(|effect| wanted(effect)).count()
}

#[test]
fn the_copy_ends_with_the_old_name_on_the_new_node() {
    let (states, effects) = drive_swap(&|_, _| {});
    let Some(Phase::Completed { plan, .. }) = states.last().map(|s| &s.phase) else {
        panic!("{:?}", steps(&states))
    };
    let (first, names) = (plan.origin(), (plan.source_pod.as_str(), plan.target_pod.as_str()));
    assert_eq!(names, ("consumer-0-shadow", "consumer-0"));
    assert_eq!((first.source_pod.as_str(), first.source_node.as_str()), ("consumer-0", "worker-1"));
    assert_eq!(plan.source_connection, "c6");
    assert_eq!(count(&effects, |e| *e == Effect::Checkpoint), 2);
    // The shadow is taken for the source, and the old pod is not deleted before the image is there.
    let made_room = position(&effects, |e| *e == Effect::MakeRoom);
    let jobs: Vec<usize> =
        (0..effects.len()).filter(|&at| effects[at] == Effect::CreateJob).collect();
    let admitted = position(&effects, |e| *e == Effect::Admit { node: "worker-2".into() });
    let deleted = position(&effects, |e| *e == Effect::DeleteSource);
    assert!(jobs[1] < made_room && made_room < admitted && admitted < deleted);
    assert_eq!(count(&effects, |e| *e == Effect::DeleteSource), 1);
    assert!(!effects.contains(&Effect::Vacate) && !effects.contains(&Effect::DeleteTarget));
}

#[test]
fn the_second_hop_stands_in_the_first_ones_feed_and_everything_is_removed() {
    let (states, effects) = drive_swap(&|_, _| {});
    let plan = states.last().and_then(|s| s.phase.plan()).expect("a plan");
    let (first, second) = (&plan.origin().names, &plan.names);
    assert_ne!(first.gate, second.gate);
    assert_eq!(plan.bindings, [Binding::plain(&first.both)]);
    let removed = |wanted: &str| {
        effects.iter().any(|e| {
            matches!(e, Effect::Topology(
                Topology::DeleteQueue { name } | Topology::DeleteExchange { name }
            ) if name == wanted)
        })
    };
    for names in [first, second] {
        for name in names.exchanges().into_iter().chain(names.side_queues()) {
            assert!(removed(name), "{name} is left");
        }
    }
    assert!(removed("ms2m.control.consumer-0-shadow") && !removed("ms2m.control.consumer-0"));
    let last = effects.iter().rev().find_map(|e| match e {
        Effect::Topology(Topology::BindQueue { queue, binding }) if queue == Q => Some(binding),
        _ => None,
    });
    assert_eq!(last, Some(&binding()));
}

#[test]
fn until_the_old_pod_makes_room_the_way_back_leads_to_it() {
    let (forward, _) = drive_swap(&|_, _| {});
    let room = forward.iter().position(|s| s.phase.step().name() == "restoring/make-room");
    let room = room.expect("reached");
    let hop = forward.iter().position(|s| s.phase.step().name() == "finalizing/hop");
    for state in &forward[hop.expect("reached") + 1..room] {
        let Some(plan) = state.phase.plan() else { continue };
        let (name, names) = (state.phase.step().name(), plan.names.clone());
        let trouble = broken();
        let (states, effects) = drive_swap(&|phase, seen| {
            let second = phase.plan().is_some_and(|plan| plan.standby().is_some());
            if second && phase.step().name() == name {
                seen.trouble = Some(trouble.clone());
            }
        });
        let Some(Phase::Failed { failure, rolled_back: true }) = states.last().map(|s| &s.phase)
        else {
            panic!("{name}: {:?}", steps(&states))
        };
        assert_eq!(failure.reason, "Broken");
        let back = states.iter().find_map(|s| match &s.phase {
            Phase::Unwinding { plan, reached, .. } => Some((plan, *reached)),
            _ => None,
        });
        let (first, reached) = back.expect("undone");
        assert_eq!((first.source_pod.as_str(), reached), ("consumer-0", Reached::Hopped));
        assert!(effects.contains(&Effect::DeleteTarget), "the shadow goes");
        let cleared = position(
            &effects,
            |e| matches!(e, Effect::Topology(Topology::DeleteQueue { name }) if *name == names.s2),
        );
        let fed = position(&effects, |e| *e == Effect::DeleteTarget);
        assert!(fed < cleared, "the shadow consumes the second hop's queues");
    }
}

#[test]
fn afterwards_the_second_hop_is_undone_and_tried_again() {
    for step in ["restoring/hop-admit", "replaying", "finalizing/open", "finalizing/overlap"] {
        let here = once_at(step);
        let (states, effects) = drive_swap(&|phase, seen| {
            if here(phase) {
                let copy = seen.target.get_or_insert_with(returned);
                (copy.ended, copy.running) = (true, false);
            }
        });
        let all = steps(&states);
        assert_eq!(all.last(), Some(&"completed"), "{step}: {all:?}");
        assert!(all.contains(&"finalizing/hop-again"), "{step}: {all:?}");
        assert_eq!(count(&effects, |e| *e == Effect::MakeRoom), 1);
        assert_eq!(count(&effects, |e| *e == Effect::Checkpoint), 3);
    }
}

#[test]
fn a_copy_that_never_ran_is_let_in_again() {
    let here = once_at("restoring/hop-admit");
    let (states, effects) = drive_swap(&|phase, seen| {
        if here(phase) {
            seen.target = Some(unstarted(true));
        }
    });
    let all = steps(&states);
    assert!(all.contains(&"restoring/hop-retry"), "{all:?}");
    assert_eq!(all.last(), Some(&"completed"));
    assert_eq!(count(&effects, |e| *e == Effect::Checkpoint), 2, "the same checkpoint");
}

fn unstarted(ended: bool) -> Pod {
    let mut copy = returned();
    let status = copy.statuses.get_mut("app").expect("a container");
    (status.running, status.started) = (false, false);
    copy.ended = ended;
    copy
}

#[test]
fn a_copy_that_may_have_come_and_gone_unseen_is_not_let_in_again() {
    let (forward, _) = drive_swap(&|_, _| {});
    let state = forward.iter().find(|s| s.phase.step().name() == "restoring/hop-admit");
    let state = state.expect("reached");
    let next = |spoil: fn(&mut Observation)| {
        let mut seen = world(&state.phase);
        spoil(&mut seen);
        let late = Time(state.since.0 + settings().deadlines.restore + 1);
        decide(&swap(), &settings(), state, &seen, late).state.phase.step().name()
    };
    assert_eq!(next(|seen| seen.target = None), "unwinding/target");
    assert_eq!(next(|seen| seen.target = Some(unstarted(false))), "unwinding/target");
    assert_eq!(next(|seen| seen.target = Some(unstarted(true))), "restoring/hop-retry");
}

#[test]
fn when_the_shadow_dies_the_checkpoint_or_the_copy_takes_its_place() {
    // Before the copy runs, its checkpoint is the truth; after that, the copy is the survivor.
    for (dead_from, expected) in
        [("restoring/hop-admit", "restoring/vacate"), ("replaying", "replaying/committed")]
    {
        let dead = std::cell::Cell::new(false);
        let (states, effects) = drive_swap(&|phase, seen| {
            let second = phase.plan().is_some_and(|plan| plan.base().is_some());
            dead.set(dead.get() || (second && phase.step().name() == dead_from));
            if dead.get() {
                seen.source = None;
                if phase.step().name() == "restoring/hop-admit" {
                    seen.target = None;
                }
            }
        });
        let all = steps(&states);
        assert!(all.contains(&expected), "{dead_from}: {all:?}");
        assert_eq!(all.last(), Some(&"completed"), "{dead_from}: {all:?}");
        assert!(!effects.contains(&Effect::DeleteTarget));
    }
}

#[test]
fn the_connection_of_the_pod_that_stands_by_is_watched_all_along() {
    let (forward, _) = drive_swap(&|_, _| {});
    let standing_by = |s: &&State| s.phase.plan().is_some_and(|plan| plan.standby().is_some());
    let mut steps = 0;
    for state in forward.iter().filter(standing_by) {
        assert!(crate::decide::interest(&state.phase).connected, "{}", state.phase.step());
        steps += 1;
    }
    assert!(steps > 5, "{steps}");
}

#[test]
fn a_pod_that_stands_by_and_dies_takes_the_migration_with_it() {
    let here = once_at("checkpointing/drain");
    let (states, _) = drive_swap(&|phase, seen| {
        if here(phase) {
            seen.standby = None;
        }
    });
    let Some(Phase::Failed { failure, rolled_back: true }) = states.last().map(|s| &s.phase) else {
        panic!("{:?}", steps(&states))
    };
    assert_eq!(failure.reason, "SourceLost");
}

fn broken() -> crate::observation::Trouble {
    crate::observation::Trouble {
        reason: "Broken".into(),
        message: "it does not work".into(),
        permanent: true,
    }
}

/// Whether `state` is given up when `spoil` has happened to its world.
fn given_up(state: &State, spoil: impl FnOnce(&mut Observation)) -> bool {
    let mut seen = world(&state.phase);
    spoil(&mut seen);
    let next = decide(&swap(), &settings(), state, &seen, state.since).state.phase;
    matches!(next, Phase::Unwinding { .. })
}

#[test]
fn who_is_going_is_let_go_and_who_is_not_can_stay() {
    let (forward, _) = drive_swap(&|_, _| {});
    let at = |name: &str| forward.iter().find(|s| s.phase.step().name() == name).expect("reached");
    let old =
        |terminating| Some(Pod { terminating, ..of_the_set(pod("source", "worker-1", "c1")) });
    let room = at("restoring/make-room");
    assert!(given_up(room, |o| (o.trouble, o.standby) = (Some(broken()), old(false))));
    assert!(!given_up(room, |o| (o.trouble, o.standby) = (Some(broken()), old(true))));
    // The shadow is on its way out; its copy, or its checkpoint, goes on without it.
    for step in ["restoring/hop-prepare", "restoring/hop-admit"] {
        assert!(!given_up(at(step), |o| o.source.as_mut().expect("there").terminating = true));
    }
}

#[test]
fn a_shadow_that_has_ended_is_not_gone_back_to() {
    let dead = std::cell::Cell::new(false);
    let (states, _) = drive_swap(&|phase, seen| {
        let admit = phase.step().name() == "restoring/hop-admit";
        dead.set(dead.get() || admit);
        seen.source = seen.source.take().filter(|_| !dead.get());
        seen.target = seen.target.take().filter(|_| !admit);
    });
    let state = states.iter().find(|s| s.phase.step().name() == "restoring/vacate");
    let ended = Pod { ended: true, ours: true, ..pod("target", "worker-2", "c2") };
    let trouble = |o: &mut Observation| (o.trouble, o.source) = (Some(broken()), Some(ended));
    assert!(!given_up(state.expect("reached"), trouble));
}

/// It has died, and the checkpoint takes its place, or it has strayed, and the checkpoint is void.
#[test]
fn a_shadow_that_loses_its_connection_is_waited_for_until_it_shows_which() {
    let (forward, _) = drive_swap(&|_, _| {});
    let admit = forward.iter().find(|s| s.phase.step().name() == "restoring/hop-admit");
    let admit = admit.expect("reached");
    let next = |after: u64, consumers: u32, spoil: fn(&mut Observation)| {
        let mut seen = world(&admit.phase);
        let broker = seen.broker.as_mut().expect("a broker");
        broker.connected = Some(false);
        broker.primary = Some(Counts { ready: 0, consumers });
        spoil(&mut seen);
        let now = Time(admit.since.0 + after);
        decide(&swap(), &settings(), admit, &seen, now).state.phase.step().name()
    };
    let limit = settings().deadlines.restore;
    let no_copy: fn(&mut Observation) = |seen| seen.target = None;
    for (after, consumers, spoil, expected) in [
        (limit, 1, (|_| {}) as fn(&mut Observation), "restoring/hop-admit"),
        (limit, 0, no_copy, "restoring/hop-admit"),
        (limit + 1, 1, |_| {}, "unwinding/target"),
        (0, 2, |_| {}, "unwinding/target"),
        (0, 1, no_copy, "unwinding/target"),
        (0, 1, |seen| seen.source.as_mut().expect("there").ended = true, "replaying"),
        (0, 1, |seen| seen.broker.as_mut().expect("there").connected = Some(true), "replaying"),
    ] {
        assert_eq!(next(after, consumers, spoil), expected, "{after} ms, {consumers} consumers");
    }
}

#[test]
fn an_abort_comes_too_late_once_the_old_pod_has_made_room() {
    let (forward, _) = drive_swap(&|_, _| {});
    let late = forward
        .iter()
        .filter(|s| s.phase.plan().and_then(Plan::base).is_some_and(|base| base.vacated));
    let mut seen_some = false;
    for state in late {
        let spec = Spec { abort: true, ..swap() };
        let seen = world(&state.phase);
        let next = decide(&spec, &settings(), state, &seen, Time(state.since.0 + 1)).state.phase;
        assert!(!matches!(next, Phase::Unwinding { .. }), "{}", state.phase.step());
        seen_some = true;
    }
    assert!(seen_some);
}

/// To undo it then would be to delete the last one that has the state.
#[test]
fn the_last_one_that_is_left_is_kept() {
    let abort = Spec { abort: true, deleted: true, ..swap() };
    let again = once_at("replaying");
    let (states, _) = drive_swap(&|phase, seen| {
        if again(phase) {
            seen.target.get_or_insert_with(returned).ended = true;
        }
    });
    let alone = states.iter().filter(|s| s.phase.step().name() == "finalizing/hop-again");
    let (forward, _) = drive_swap(&|_, _| {});
    let vacated = |s: &&State| s.phase.plan().and_then(Plan::base).is_some_and(|it| it.vacated);
    let second = ["restoring", "replaying", "finalizing"];
    let bereaved =
        forward.iter().filter(vacated).filter(|s| second.contains(&s.phase.step().phase()));
    let mut steps = std::collections::BTreeSet::new();
    for state in alone.chain(bereaved) {
        let mut seen = world(&state.phase);
        if state.phase.step().name() != "finalizing/hop-again" {
            // Its connection went with it.
            seen.source = None;
            seen.broker.as_mut().expect("a broker").connected = Some(false);
        }
        for after in [1, 10_000_000] {
            let now = Time(state.since.0 + after);
            let next = decide(&abort, &settings(), state, &seen, now).state.phase;
            assert!(!matches!(next, Phase::Unwinding { .. }), "{}", state.phase.step());
        }
        steps.insert(state.phase.step());
    }
    assert!(steps.len() > 5, "{steps:?}");
}

#[test]
fn a_swap_that_does_not_fit_is_refused() {
    let ask = |spec: Spec, seen: Observation, settings: &Settings| {
        let state = State::new(Time(0));
        let decision = decide(&spec, settings, &state, &seen, Time(1));
        let Phase::Failed { failure, rolled_back: false } = decision.state.phase else {
            panic!("accepted")
        };
        failure.message
    };
    let mut seen = preflight();
    assert!(ask(swap(), seen.clone(), &settings()).contains("for pods of StatefulSets"));
    seen.source = Some(of_the_set(pod("source", "worker-1", "c1")));
    assert!(ask(swap(), seen.clone(), &Settings::default()).contains("Kubernetes 1.30"));
    seen.source.as_mut().expect("a source").remembers = true;
    let park = Spec { replay_mode: Some(ReplayMode::Park), ..swap() };
    assert!(ask(park, seen, &settings()).contains("stand still twice"));
}
