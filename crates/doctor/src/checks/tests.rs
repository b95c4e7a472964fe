//! Every check's words. `INSTA_UPDATE=always cargo test -p shadow-doctor` writes them anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::*;
use crate::facts::{
    Agent, Broker, Containerd, Crd, Crio, Criu, Crun, FORMAT, Process, Registry, Right, Survey,
};
use crate::finding::Verdict;

type Spoil = fn(&mut Facts);

fn report() -> Report {
    let options = ["tcp-close", "skip-in-flight"].map(Text::from);
    let files = ["default.conf", "crun.conf", "runc.conf"].map(Text::from);
    Report {
        format: FORMAT,
        crio: Ok(Crio { criu: Some(true), runtime: Some("crun".into()), ..Crio::default() }),
        containerd: Ok(Containerd::default()),
        criu: Criu { version: Ok(Some("Version: 4.1.1".into())), check: Ok(None) },
        options: Ok(files.into_iter().map(|file| (file, options.clone().into())).collect()),
        crun: Ok(Some(Crun { version: "crun version 1.21".into(), criu: true })),
        cgroup: Ok(2),
        cpu: Ok(["fpu", "sse2", "avx"].map(Text::from).into()),
        checkpoints_free: Ok(20_000_000_000),
        storage_free: Ok(20_000_000_000),
        process: None,
    }
}

fn node(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        ready: true,
        kubelet: "v1.36.3".into(),
        runtime: "cri-o://1.36.3".into(),
        kernel: "6.18.5".into(),
        architecture: "amd64".into(),
        gate: Ok(Some(true)),
        agent: Ok(Agent::Ready),
        report: Ok(report()),
    }
}

fn right(resource: &str, verb: &str) -> Right {
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    Right {
        group: group.to_owned(),
        resource: resource.to_owned(),
        verb: verb.to_owned(),
        allowed: true,
    }
}

fn healthy() -> Facts {
    let rights = [("jobs.batch", "create"), ("jobs.batch", "delete"), ("nodes/proxy", "create")];
    let mut rights: Vec<Right> = rights.map(|(resource, verb)| right(resource, verb)).into();
    rights.push(right("secrets", "get"));
    let survey = Survey { version: "4.0.5".into(), queue_exists: true, ..Survey::default() };
    let mut facts = Facts {
        nodes: vec![node("worker-1"), node("worker-2")],
        all: true,
        rights: Ok(rights),
        crd: Ok(Crd::Served),
        broker: Some(Broker { answers: Ok(survey), queue: Some("app.events".to_owned()) }),
        registry: Some(Registry { name: "registry:5000/checkpoints".to_owned(), takes: Ok(()) }),
        pod: None,
    };
    facts.pod = Some(patient(&json!({})));
    let process = Process { count: 1, tcp_listening: 1, ..Process::default() };
    report_of(&mut facts, 0).process = Some(Ok(process));
    facts
}

/// A pod on worker-1, with these fields of its spec or its container besides.
fn patient(more: &Value) -> Patient {
    let mut pod = json!({
        "metadata": { "namespace": "default", "name": "consumer-0" },
        "spec": { "nodeName": "worker-1", "containers": [{ "name": "app" }] },
        "status": { "containerStatuses": [
            { "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
              "state": { "running": {} } },
        ] },
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        let place = match field.strip_prefix("app.") {
            Some(field) => &mut pod["spec"]["containers"][0][field],
            None => &mut pod["spec"][field],
        };
        *place = value.clone();
    }
    let pod: core::Pod = serde_json::from_value(pod).unwrap();
    Patient { pod, container: "app".to_owned(), handler: None, memory: Ok(40_000_000) }
}

fn report_of(facts: &mut Facts, node: usize) -> &mut Report {
    facts.nodes[node].report.as_mut().unwrap()
}

fn crio_of(facts: &mut Facts) -> &mut Crio {
    report_of(facts, 0).crio.as_mut().unwrap()
}

fn crun_of(facts: &mut Facts) -> &mut Crun {
    report_of(facts, 0).crun.as_mut().unwrap().as_mut().unwrap()
}

fn process(facts: &mut Facts) -> &mut Process {
    report_of(facts, 0).process.as_mut().unwrap().as_mut().unwrap()
}

fn survey(facts: &mut Facts) -> &mut Survey {
    facts.broker.as_mut().unwrap().answers.as_mut().unwrap()
}

fn without(facts: &mut Facts, option: &str) {
    for options in report_of(facts, 0).options.as_mut().unwrap().values_mut() {
        options.remove(&Text::from(option));
    }
}

fn texts(words: &[&str]) -> BTreeSet<Text> {
    words.iter().map(|word| Text::from(*word)).collect()
}

const CLUSTERS: [(&str, Spoil); 15] = [
    ("no CRD", |f| f.crd = Ok(Crd::Absent)),
    ("a CRD of another version", |f| f.crd = Ok(Crd::OtherVersion)),
    ("a CRD that may not be read", |f| f.crd = Err("forbidden".into())),
    ("an operator without rights", |f| {
        for right in f.rights.as_mut().unwrap() {
            right.allowed = right.group.is_empty() && right.resource != "nodes/proxy";
        }
    }),
    ("an operator without Secrets", |f| f.rights.as_mut().unwrap()[3].allowed = false),
    ("rights that may not be asked for", |f| f.rights = Err("forbidden".into())),
    ("one node", |f| f.nodes.truncate(1)),
    ("a broker that does not answer", |f| {
        f.broker.as_mut().unwrap().answers =
            Err("connecting at broker b:5672: not reachable".into());
    }),
    ("a broker that lets nobody declare", |f| survey(f).lock = Some("access refused".into())),
    ("a broker with an alarm", |f| survey(f).alarms = vec!["503 memory".into()]),
    ("a queue that does not exist", |f| survey(f).queue_exists = false),
    ("a broker without statistics", |f| survey(f).statistics_disabled = true),
    ("an old broker", |f| survey(f).version = "3.13.7".into()),
    ("a broker with an odd version", |f| survey(f).version = "new".into()),
    ("a registry that takes nothing", |f| {
        f.registry.as_mut().unwrap().takes = Err("registry r can't be used".into());
    }),
];

const NODES: [(&str, Spoil); 27] = [
    ("a node that is not Ready", |f| f.nodes[0].ready = false),
    ("the gate off", |f| f.nodes[0].gate = Ok(Some(false))),
    ("the gate off by default", |f| {
        (f.nodes[0].gate, f.nodes[0].kubelet) = (Ok(None), "v1.29.1".into());
    }),
    ("a kubelet without the API", |f| {
        (f.nodes[0].gate, f.nodes[0].kubelet) = (Ok(None), "v1.24.0".into());
    }),
    ("a kubelet that may not be asked", |f| {
        f.nodes[0].gate = Err("nodes/proxy is forbidden".into());
    }),
    ("no agent", |f| f.nodes[0].agent = Ok(Agent::Absent)),
    ("an agent that is not Ready", |f| f.nodes[0].agent = Ok(Agent::Unready)),
    ("an old CRI-O", |f| f.nodes[0].runtime = "cri-o://1.24.1".into()),
    ("a runtime that did not answer", |f| f.nodes[0].runtime = "cri-o://Unknown".into()),
    ("Docker", |f| f.nodes[0].runtime = "docker://27.0.1".into()),
    ("CRIU off in CRI-O", |f| crio_of(f).criu = Some(false)),
    ("a new CRI-O at its default", |f| f.nodes[0].runtime = "cri-o://1.36.6".into()),
    ("a CRI-O that only checkpoints", |f| {
        f.nodes[0].runtime = "cri-o://1.37.0".into();
        crio_of(f).level = Some("checkpoint_only".into());
    }),
    ("a CRI-O that may have got the level", |f| f.nodes[0].runtime = "cri-o://1.33.2".into()),
    ("a signature policy", |f| crio_of(f).policy = Some("/etc/policy.json".into())),
    ("a signature policy of the pod's namespace", |f| crio_of(f).policies = texts(&["default"])),
    ("a signature policy of some namespace", |f| {
        crio_of(f).policies = texts(&["shop"]);
        f.pod = None;
    }),
    ("no CRIU", |f| {
        let check = Err("criu is not installed on the node".into());
        report_of(f, 0).criu = Criu { version: Ok(None), check };
    }),
    ("no crun", |f| report_of(f, 0).crun = Ok(None)),
    ("an old CRIU", |f| report_of(f, 0).criu.version = Ok(Some("Version: 3.15".into()))),
    ("a CRIU that is not content", |f| {
        report_of(f, 0).criu.check = Ok(Some("Error (criu/cr-check.c:1056): no TCP repair".into()));
    }),
    ("no tcp-close", |f| without(f, "tcp-close")),
    ("tcp-established for tcp-close", |f| {
        without(f, "tcp-close");
        let options = report_of(f, 0).options.as_mut().unwrap();
        options.insert("default.conf".into(), texts(&["tcp-established"]));
    }),
    ("no skip-in-flight, and a CRIU that is told of crun.conf", |f| {
        without(f, "skip-in-flight");
        report_of(f, 0).criu.version = Ok(Some("Version: 4.2".into()));
    }),
    ("an old crun", |f| crun_of(f).version = "crun version 1.14.1".into()),
    ("a crun without CRIU", |f| crun_of(f).criu = false),
    ("a node that was not asked", |f| {
        f.nodes[0].report = Err("it was not asked (--no-probe)".into());
    }),
];

const ALIKE: [(&str, Spoil); 11] = [
    ("containerd at its default", |f| f.nodes[0].runtime = "containerd://2.2.7".into()),
    ("containerd that restores by default", |f| f.nodes[0].runtime = "containerd://2.1.9".into()),
    ("containerd that has dropped it", |f| f.nodes[0].runtime = "containerd://2.4.0".into()),
    ("cgroups of another version", |f| report_of(f, 1).cgroup = Ok(1)),
    ("another architecture", |f| f.nodes[1].architecture = "arm64".into()),
    ("an older kernel on the target", |f| f.nodes[1].kernel = "5.15.0-91-generic".into()),
    ("a lesser CPU on the target", |f| report_of(f, 1).cpu = Ok(texts(&["fpu"]))),
    ("a lesser CPU, no pod named", |f| {
        report_of(f, 1).cpu = Ok(texts(&["fpu", "sse2"]));
        f.pod = None;
    }),
    ("a full disk", |f| report_of(f, 0).checkpoints_free = Ok(79_000_000)),
    ("a disk that is nearly full", |f| report_of(f, 0).storage_free = Ok(900_000_000)),
    ("a disk that is not known", |f| report_of(f, 0).storage_free = Err("no folder".into())),
];

fn spec(facts: &mut Facts, more: &Value) {
    facts.pod = Some(patient(more));
}

const PODS: [(&str, Spoil); 24] = [
    ("a container that is not there", |f| f.pod.as_mut().unwrap().container = "nope".to_owned()),
    ("a container that does not run", |f| f.pod.as_mut().unwrap().pod.status = None),
    ("a user namespace", |f| spec(f, &json!({ "hostUsers": false }))),
    ("the node's network", |f| spec(f, &json!({ "hostNetwork": true }))),
    ("another host name", |f| spec(f, &json!({ "hostname": "other" }))),
    ("a whole domain name", |f| spec(f, &json!({ "setHostnameAsFQDN": true }))),
    ("a long name", |f| f.pod.as_mut().unwrap().pod.metadata.name = Some("a".repeat(64))),
    ("a terminal", |f| spec(f, &json!({ "app.tty": true }))),
    ("a GPU", |f| spec(f, &json!({ "app.resources": { "limits": { "nvidia.com/gpu": "1" } } }))),
    ("a sandbox", |f| f.pod.as_mut().unwrap().handler = Some(Ok("kata-qemu".into()))),
    ("another handler", |f| f.pod.as_mut().unwrap().handler = Some(Ok("crun".into()))),
    ("a RuntimeClass that may not be read", |f| {
        f.pod.as_mut().unwrap().handler = Some(Err("forbidden".into()));
    }),
    ("much memory and a strict probe", |f| {
        spec(f, &json!({ "app.livenessProbe": { "failureThreshold": 1 } }));
        f.pod.as_mut().unwrap().memory = Ok(2_000_000_000);
    }),
    ("memory that is not known", |f| f.pod.as_mut().unwrap().memory = Err("no statistics".into())),
    ("volumes", |f| {
        let mounts = ["a", "b", "c", "d"].map(|name| json!({ "name": name, "mountPath": "/" }));
        let token = json!([{ "serviceAccountToken": { "path": "token" } }]);
        let volumes = json!([
            { "name": "a", "emptyDir": {} }, { "name": "b", "hostPath": { "path": "/srv" } },
            { "name": "c", "projected": { "sources": token } },
            { "name": "d", "persistentVolumeClaim": { "claimName": "data-0" } },
            { "name": "unused", "emptyDir": {} },
        ]);
        spec(f, &json!({ "app.volumeMounts": mounts, "volumes": volumes }));
    }),
    ("a sidecar", |f| {
        spec(f, &json!({ "initContainers": [{ "name": "mesh", "restartPolicy": "Always" }] }));
    }),
    ("an io_uring", |f| process(f).io_uring = true),
    ("a user namespace in fact", |f| process(f).user_namespace = true),
    ("an open terminal and an open device", |f| {
        process(f).terminals = texts(&["/dev/pts/0"]);
        process(f).devices = texts(&["/dev/fuse"]);
    }),
    ("MPTCP", |f| process(f).protocols = texts(&["MPTCP"])),
    ("watches and handles", |f| {
        (process(f).overlay_watches, process(f).handles) = (2, texts(&["perf_event"]));
    }),
    ("sockets", |f| {
        let process = process(f);
        (process.tcp_established, process.unix_connected, process.unlisted_sockets) = (2, 3, 1);
    }),
    ("processes that can't be read", |f| process(f).unread = 1),
    ("processes that were not found", |f| report_of(f, 0).process = Some(Err("no process".into()))),
];

/// What is said of spoiled facts that is not said of healthy ones.
fn said(name: &str, spoil: Spoil) -> String {
    let before = all(&healthy());
    let mut facts = healthy();
    spoil(&mut facts);
    let mut text = format!("{name}\n");
    for finding in all(&facts).into_iter().filter(|finding| !before.contains(finding)) {
        let Finding { check, subject, verdict, reason, remedy } = finding;
        let _ = writeln!(text, "    {verdict:?} {check} of {subject}: {reason}");
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "        {remedy}");
        }
    }
    text
}

#[test]
fn a_healthy_cluster_passes_every_check() {
    let findings = all(&healthy());
    let bad: Vec<_> = findings.iter().filter(|finding| finding.verdict != Verdict::Ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    insta::assert_snapshot!(crate::print::text(&findings));
}

#[test]
fn what_is_wrong_is_said_with_its_remedy() {
    for (group, cases) in
        [("cluster", &CLUSTERS[..]), ("node", &NODES), ("alike", &ALIKE), ("pod", &PODS)]
    {
        let text: String = cases.iter().map(|(name, spoil)| said(name, *spoil)).collect();
        insta::assert_snapshot!(group, text);
    }
}

#[test]
fn who_is_warned_is_told_what_to_do() {
    for (name, spoil) in CLUSTERS.iter().chain(&NODES).chain(&ALIKE).chain(&PODS) {
        let mut facts = healthy();
        spoil(&mut facts);
        let findings = all(&facts);
        assert_ne!(findings, all(&healthy()), "{name} is not noticed");
        for finding in findings {
            let bad = matches!(finding.verdict, Verdict::Failure | Verdict::Warning);
            assert_eq!(bad, finding.remedy.is_some(), "{name}: {finding:?}");
        }
    }
}

#[test]
fn with_a_pod_only_the_way_away_from_its_node_counts() {
    let mut facts = healthy();
    report_of(&mut facts, 0).cpu = Ok(texts(&["fpu"]));
    assert!(all(&facts).iter().all(|finding| finding.verdict == Verdict::Ok), "it only gains");
    facts.pod = None;
    assert!(all(&facts).iter().any(|finding| finding.verdict == Verdict::Warning));
}

#[test]
fn of_a_move_each_end_is_asked_only_what_it_is_needed_for() {
    let checks = |facts: &Facts| {
        let findings = of_move(facts, "worker-2");
        findings.iter().map(|it| format!("{} of {}", it.check, it.subject)).collect::<Vec<_>>()
    };
    assert_eq!(checks(&healthy()), [] as [&str; 0]);
    let mut facts = healthy();
    for node in [0, 1] {
        facts.nodes[node].gate = Ok(Some(false));
        facts.nodes[node].runtime = "cri-o://1.20.0".into();
    }
    facts.crd = Ok(Crd::Absent);
    assert_eq!(checks(&facts), ["kubelet-checkpoint of node worker-1", "runtime of node worker-2"]);
}

#[test]
fn every_check_of_a_move_is_one_that_there_is() {
    let there: Vec<&str> = all(&healthy()).iter().map(|it| it.check).collect();
    let asked = AT_SOURCE.iter().chain(&AT_TARGET).chain([&AT_BOTH]);
    assert_eq!(asked.filter(|check| !there.contains(check)).count(), 0);
}

#[test]
fn failures_come_first_and_decide() {
    let mut facts = healthy();
    without(&mut facts, "tcp-close");
    facts.nodes[0].agent = Ok(Agent::Absent);
    let findings = all(&facts);
    let text = crate::print::text(&findings);
    assert!(text.starts_with("node worker-1\n  FAIL  criu-options "), "{text}");
    assert!(text.ends_with("1 failure, 0 warnings, 0 unknown, 1 note, 44 ok\n"), "{text}");
    assert!(!crate::print::passes(&findings) && crate::print::passes(&all(&healthy())));
    let json = crate::print::json(&findings);
    assert_eq!((&json["passes"], &json["summary"]["failure"]), (&json!(false), &json!(1)));
    assert_eq!(json["findings"][0]["check"], "criu-options");
    assert_eq!(json["findings"][0]["verdict"], "failure");
}
