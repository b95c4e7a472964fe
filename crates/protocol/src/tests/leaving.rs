//! The last pod of a StatefulSet leaves it: the set gets smaller by one.

use super::*;
use crate::observation::PodsOfSet;
use crate::phase::Reached;

fn shadow() -> Spec {
    Spec { strategy: Some(Strategy::ShadowPod), source_pod: "app-2".into(), ..spec() }
}

fn of_three() -> Observation {
    let mut seen = preflight();
    seen.source.as_mut().expect("a source").owner = Owner::StatefulSet("app".into());
    checks(&mut seen).set = Some(PodsOfSet { first: 0, replicas: 3, deletes_claims: false });
    seen
}

fn decided(spec: &Spec, seen: &Observation) -> Phase {
    decide(spec, &Settings::default(), &State::new(Time(0)), seen, Time(0)).state.phase
}

fn reason(phase: &Phase) -> &str {
    match phase {
        Phase::Failed { failure, .. } => &failure.reason,
        _ => panic!("not refused: {phase:?}"),
    }
}

fn plan() -> Plan {
    decided(&shadow(), &of_three()).plan().expect("it may go").clone()
}

#[test]
fn only_the_last_pod_may_leave() {
    assert_eq!(plan().replicas, Some(3));
    assert_eq!(plan().target_pod, "app-2-shadow");
    let middle = Spec { source_pod: "app-1".into(), ..shadow() };
    assert_eq!(reason(&decided(&middle, &of_three())), "NotTheLastReplica");
    let mut later = of_three();
    checks(&mut later).set = Some(PodsOfSet { first: 5, replicas: 3, deletes_claims: false });
    assert_eq!(reason(&decided(&shadow(), &later)), "NotTheLastReplica");
    let last = Spec { source_pod: "app-7".into(), ..shadow() };
    assert_eq!(decided(&last, &later).plan().and_then(|plan| plan.replicas), Some(3));
}

#[test]
fn claims_are_not_given_away() {
    let mut seen = of_three();
    checks(&mut seen).set = Some(PodsOfSet { first: 0, replicas: 3, deletes_claims: true });
    assert_eq!(reason(&decided(&shadow(), &seen)), "ClaimsWouldGo");
}

#[test]
fn nothing_is_decided_before_the_set_is_read() {
    let mut seen = of_three();
    checks(&mut seen).set = None;
    assert_eq!(decided(&shadow(), &seen), Phase::Pending);
}

#[test]
fn who_keeps_its_name_leaves_nothing() {
    let swap = Spec { identity_swap: IdentitySwap::Cutoff, ..shadow() };
    let settings = Settings { admission: true, ..Settings::default() };
    let done = decide(&swap, &settings, &State::new(Time(0)), &of_three(), Time(0));
    assert_eq!(done.state.phase.plan().expect("a plan").replicas, None);
}

#[test]
fn the_set_deletes_the_source_itself() {
    let effects = crate::switch::effects(&plan(), SwitchStep::Replace(None));
    assert_eq!(effects, [Effect::Adopt, Effect::ScaleDown { from: 3 }]);
}

#[test]
fn on_the_way_back_the_set_grows_first_if_it_may_have_shrunk() {
    let back =
        |during| crate::unwind::effects(&plan(), during, Reached::CutB, false, &Undo::Target);
    let grow = Effect::ScaleUp { to: 3 };
    assert_eq!(back(PhaseName::Finalizing).first(), Some(&grow));
    assert!(!back(PhaseName::Replaying).contains(&grow));
}
