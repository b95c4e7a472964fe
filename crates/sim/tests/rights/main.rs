//! The operator under the rights that config/rbac/role.yaml gives it: with all of them everything is
//! moved; without any one of them somebody says which, and nothing is left half-moved.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "what can't be set up fails the test")]

mod role;
mod run;

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock};

use role::{Right, Role};
use run::{Case, Outcome, run};
use serde_json::json;
use shadow_sim::scenario::WorldFault;
use shadow_sim::shop::campaign::ordinary;
use shadow_sim::shop::plan::{Fault, Plan};

/// Rights that no run in memory uses, and where they are used.
const ELSEWHERE: &[(&str, &str)] = &[
    ("create secrets in ms2m-system", "the agents' certificates: authority.rs"),
    ("get secrets in ms2m-system", "the same"),
    ("update secrets in ms2m-system", "the same, renewed"),
    (
        "create serviceaccounts/token in ms2m-system",
        "what brings a checkpoint to an agent: agents.rs",
    ),
    ("get pods/log in ms2m-system", "what the pods say that look at nodes: doctor's probe_pod.rs"),
    ("get runtimeclasses", "of a pod that names one: doctor's patient.rs"),
    ("get persistentvolumeclaims", "of a pod that claims some: volumes.rs"),
    ("get persistentvolumes", "the same"),
    ("update deployments/finalizers", "OwnerReferencesPermissionEnforcement: pin.rs"),
    ("update statefulsets/finalizers", "the same: target_pod.rs, the copy has its source's owner"),
];

/// Without these there is no status to say it in, or nobody who may write one, or no event: the operators' log
/// says it.
const IN_THE_LOG: &[&str] = &[
    "list statefulmigrations",
    "watch statefulmigrations",
    "list pods",
    "list jobs",
    "list nodes",
    "list replicasets",
    "list deployments",
    "list podtemplates",
    "list validatingadmissionpolicies",
    "list validatingadmissionpolicybindings",
    "create events",
    "create leases in ms2m-system",
    "get leases in ms2m-system",
    "list leases in ms2m-system",
    "update leases in ms2m-system",
    "watch leases in ms2m-system",
];

fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(all_cases)
}

fn all_cases() -> Vec<Case> {
    let names =
        ["bare", "deployment", "sequential", "no queue", "shrinking", "fence", "cutoff", "park"];
    let mut cases: Vec<Case> =
        names.into_iter().zip(ordinary()).map(|(name, plan)| Case::new(name, plan)).collect();
    let of = |name: &str| cases.iter().find(|it| it.name == name).expect(name).clone();
    let pinned = Case {
        wishing: |wish| wish["spec"]["pinToTargetNode"] = json!(true),
        ..Case::new("pinned", of("deployment").plan)
    };
    let mut more = vec![
        Case {
            wishing: |wish| {
                let config = &mut wish["spec"]["messageQueueConfig"];
                config["brokerUrl"] = json!(null);
                config["brokerSecretRef"] = json!({ "name": "rabbitmq", "key": "url" });
            },
            ..Case::new("secret", of("bare").plan)
        },
        Case {
            wishing: |wish| wish["spec"]["ttlSecondsAfterFinished"] = json!(5),
            ..Case::new("time to live", of("bare").plan)
        },
        pinned.clone(),
        Case::new("janitor", Plan { janitor: true, ..of("bare").plan }),
        Case::new("another leads", of("bare").plan).with(Fault::Isolated(4_000, 6_000)),
    ];
    let back = [pinned, of("sequential"), of("shrinking"), of("fence")];
    more.extend(back.into_iter().map(aborted));
    cases.extend(more);
    cases
}

/// Given up as late as there is a way back.
fn aborted(case: Case) -> Case {
    let case = Case { back: true, ..case };
    let role = Role::read();
    let whole = run(&case, &role, None).verdict.at;
    let late = (0..whole).rev().step_by(250);
    let mut given_up = late.map(|at| case.clone().with(Fault::World(at, WorldFault::Abort)));
    given_up.find(|case| run(case, &role, None).verdict.end == "Aborted").expect("a way back")
}

/// What is half-moved: the consumer lives, every message is applied once, and nothing is left over.
fn unclean(case: &Case, missing: &str, outcome: &Outcome) -> Option<String> {
    let Outcome { verdict, before, after, .. } = outcome;
    let pinless = after.events.iter().any(|note| note.contains("is not pinned"));
    let bad: Vec<&String> =
        verdict.violations.iter().filter(|it| !(pinless && it.starts_with("asked: "))).collect();
    let end = &verdict.end;
    let found = || format!("{case}, without {missing}: {end}\n{bad:#?}\n{before:#?}\n{after:#?}");
    (!bad.is_empty()).then(found)
}

/// What is not said: a message names the verb and the resource, and what to do, where its reader looks for it.
fn unsaid(case: &Case, right: &Right, whole: &str, outcome: &Outcome) -> Option<String> {
    let Outcome { verdict, before, after, .. } = outcome;
    let (words, short, end) = (right.words(), right.short(), &verdict.end);
    let now = before.as_ref().unwrap_or(after);
    let waited = if before.is_some() { ", when it was granted" } else { "" };
    let status = [&now.status].into_iter();
    let both = || status.clone().chain(&now.events);
    let places: Vec<&String> = if IN_THE_LOG.contains(&short.as_str()) {
        vec![&now.log]
    } else if before.is_some() {
        both().collect()
    } else if end == whole {
        // It does without, or was given up before it was in need.
        both().chain([&now.log]).collect()
    } else {
        status.collect()
    };
    let mut lines = places.into_iter().flat_map(|text| text.lines());
    let said = lines.find(|line| line.contains(&words) && line.contains("role.yaml"));
    println!("{case}, without {short}: {end}{waited}; {}", said.unwrap_or_default());
    let silent =
        || format!("{case}, without {short}: {end}{waited}: {words} is not said\n{now:#?}");
    said.is_none().then(silent)
}

#[test]
fn with_the_whole_role_everything_is_moved_and_all_of_it_is_used() {
    let role = Role::read();
    let mut used = BTreeSet::new();
    for case in cases() {
        let outcome = run(case, &role, None);
        assert_eq!(unclean(case, "nothing", &outcome), None);
        let end = &outcome.verdict.end;
        assert!(
            !outcome.after.log.contains("forbidden") && !outcome.after.status.contains("forbidden"),
            "{case}: {:#?}",
            outcome.after
        );
        println!(
            "{}: {end} after {} ms, {} rights",
            case.name,
            outcome.verdict.at,
            outcome.used.len()
        );
        used.extend(outcome.used);
    }
    let unused: BTreeSet<String> = role.0.difference(&used).map(Right::short).collect();
    let listed: BTreeSet<String> = ELSEWHERE.iter().map(|(right, _)| (*right).to_owned()).collect();
    assert_eq!(
        unused, listed,
        "rights that no run uses, and those that are known to be used elsewhere"
    );
}

#[test]
fn without_any_one_of_them_it_is_said_and_nothing_is_half_moved() {
    let role = Role::read();
    let complaints = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for case in cases() {
            let (role, complaints) = (&role, &complaints);
            scope.spawn(move || {
                let whole = run(case, role, None);
                // What the operator itself is in need of is so in every case.
                let own = ["bare", "another leads", "janitor"].contains(&case.name);
                let tried = |right: &&Right| own || !IN_THE_LOG.contains(&right.short().as_str());
                for right in whole.used.iter().filter(tried) {
                    let outcome = run(case, role, Some(right));
                    let found = [
                        unclean(case, &right.short(), &outcome),
                        unsaid(case, right, &whole.verdict.end, &outcome),
                    ];
                    complaints.lock().unwrap().extend(found.into_iter().flatten());
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{} runs:\n{}", complaints.len(), complaints.join("\n\n"));
}
