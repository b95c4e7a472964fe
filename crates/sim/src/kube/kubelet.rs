//! The kubelets of all nodes: they start the containers of the pods bound to their node, report how
//! they are, restart what ends, stop what is deleted, and take checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use shadow_operator::clock;
use shadow_protocol::time::Time;

use super::application::{Application, Life, Start};
use super::object::{condition, has, list, name, set_condition, terminating, text, uid};
use super::refusal::Refusal;
use super::store::{Key, Store};
use super::write::Deletion;

/// How long the kubelet takes for what it does.
#[derive(Debug, Clone)]
pub struct Pace {
    /// From a pod's binding to its containers' start, the pull of the image left out.
    pub start: Duration,
    /// Between two probes of a container that is not ready.
    pub probe: Duration,
    /// Before a container that has ended is started again: the second time and later ones.
    pub backoff: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            start: Duration::from_millis(300),
            probe: Duration::from_millis(200),
            backoff: Duration::from_secs(10),
        }
    }
}

/// All kubelets.
#[derive(Default)]
pub(super) struct Kubelets {
    pub pace: Pace,
    runs: BTreeMap<String, Run>,
    /// Nodes that are cut off: their containers go on, but nobody hears of them.
    pub away: BTreeSet<String>,
    started: u64,
    addresses: u64,
}

/// A pod on its node.
struct Run {
    node: String,
    ip: String,
    containers: BTreeMap<String, Process>,
    /// When it will have stopped, once it has been asked to.
    stops: Option<Time>,
}

struct Process {
    id: String,
    restarts: u64,
    pulled: bool,
    state: State,
}

enum State {
    Waiting { reason: &'static str, message: String, due: Time },
    Running { since: Time, ends: Option<(Time, i64, String)> },
    Ended { since: Option<Time>, at: Time, code: i64, message: String },
}

fn after(now: Time, duration: Duration) -> Time {
    Time(now.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

impl Kubelets {
    /// Does what is due; returns when something will be.
    pub fn tick(
        &mut self,
        store: &mut Store,
        applications: &mut dyn Application,
        now: Time,
    ) -> Option<Time> {
        let bound: Vec<(Key, std::sync::Arc<Value>)> = store
            .all("pods")
            .filter(|(_, pod)| has(pod, "/spec/nodeName"))
            .map(|(key, pod)| (key.clone(), pod.clone()))
            .collect();
        self.forget(&bound, store, applications);
        let mut wake: Option<Time> = None;
        for (key, pod) in bound {
            let node = text(&pod, "/spec/nodeName");
            let there = store.get(&Key::new("nodes", "", node)).is_some();
            if !there || self.away.contains(node) {
                continue;
            }
            let next = self.serve(&key, &pod, store, applications, now);
            wake = [wake, next].into_iter().flatten().min();
        }
        wake
    }

    /// Pods that were removed from the API server by force: their containers are killed as soon as
    /// their node hears of it.
    fn forget(
        &mut self,
        bound: &[(Key, std::sync::Arc<Value>)],
        store: &Store,
        applications: &mut dyn Application,
    ) {
        let known: BTreeSet<&str> = bound.iter().map(|(_, pod)| uid(pod)).collect();
        let away = &self.away;
        self.runs.retain(|uid, run| {
            let node_gone = store.get(&Key::new("nodes", "", &run.node)).is_none();
            if known.contains(uid.as_str()) || away.contains(&run.node) || node_gone {
                return true;
            }
            run.kill(applications);
            false
        });
    }

    fn serve(
        &mut self,
        key: &Key,
        pod: &Value,
        store: &mut Store,
        applications: &mut dyn Application,
        now: Time,
    ) -> Option<Time> {
        let begun = after(now, self.pace.start);
        let addresses = &mut self.addresses;
        let run = self.runs.entry(uid(pod).to_owned()).or_insert_with(|| Run {
            node: text(pod, "/spec/nodeName").to_owned(),
            ip: {
                *addresses += 1;
                format!("10.0.{}.{}", *addresses / 250, *addresses % 250 + 1)
            },
            containers: list(pod, "/spec/containers")
                .iter()
                .map(|c| (text(c, "/name").to_owned(), Process::new(begun)))
                .collect(),
            stops: None,
        });
        if terminating(pod) {
            return run.leave(key, pod, store, applications, now);
        }
        let mut wake: Option<Time> = None;
        for container in list(pod, "/spec/containers") {
            let Some(process) = run.containers.get_mut(text(container, "/name")) else { continue };
            let start = Start { pod, container, id: "", node: &run.node, ip: &run.ip };
            process.step(start, &self.pace, &mut self.started, applications, now);
            wake = [wake, process.due()].into_iter().flatten().min();
        }
        if !run.report(key, store, applications, now) {
            wake = [wake, Some(after(now, self.pace.probe))].into_iter().flatten().min();
        }
        wake
    }

    /// Ends the container `container` of the pod with this UID, as if it had crashed.
    pub fn crash(&mut self, uid: &str, container: &str, code: i64, now: Time) {
        let process = self.runs.get_mut(uid).and_then(|run| run.containers.get_mut(container));
        if let Some(Process { state: State::Running { ends, .. }, .. }) = process {
            *ends = Some((now, code, String::new()));
        }
    }

    /// The checkpoint of one container: the archive's path, and how long it took.
    pub fn checkpoint(
        &mut self,
        store: &Store,
        applications: &mut dyn Application,
        node: &str,
        target: &str,
    ) -> Result<(String, Duration), Refusal> {
        let mut parts = target.split('/');
        let (Some(namespace), Some(pod_name), Some(container)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::bad_request("checkpoint/<namespace>/<pod>/<container>"));
        };
        if self.away.contains(node) || store.get(&Key::new("nodes", "", node)).is_none() {
            return Err(Refusal::internal(format!("error trying to reach node {node}")));
        }
        let pod = store.get(&Key::new("pods", namespace, pod_name));
        let run = pod.and_then(|pod| self.runs.get(uid(pod))).filter(|run| run.node == node);
        let process = run.and_then(|run| run.containers.get(container));
        let Some(Process { id, state: State::Running { .. }, .. }) = process else {
            return Err(Refusal::not_found(format!("container {target}")));
        };
        let at = clock::rfc3339(clock::now());
        let archive = format!(
            "/var/lib/kubelet/checkpoints/checkpoint-{pod_name}_{namespace}-{container}-{at}.tar"
        );
        let frozen = applications.checkpoint(id, &archive).map_err(Refusal::internal)?;
        Ok((archive, frozen))
    }
}

impl Run {
    fn kill(&mut self, applications: &mut dyn Application) {
        for process in self.containers.values() {
            if matches!(process.state, State::Running { .. }) {
                applications.ended(&process.id);
            }
        }
    }

    /// The pod is deleted: its containers stop within their grace, then it may go.
    fn leave(
        &mut self,
        key: &Key,
        pod: &Value,
        store: &mut Store,
        applications: &mut dyn Application,
        now: Time,
    ) -> Option<Time> {
        let grace = super::object::number(pod, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
        let latest = after(now, Duration::from_secs(u64::try_from(grace).unwrap_or(0)));
        let stops = *self.stops.get_or_insert_with(|| {
            let running = self.containers.values().filter(|p| p.running());
            running.map(|p| after(now, applications.stop(&p.id))).max().unwrap_or(now).min(latest)
        });
        if now < stops.min(latest) {
            return Some(stops.min(latest));
        }
        self.kill(applications);
        for process in self.containers.values_mut() {
            if let State::Running { since, .. } = process.state {
                let message = String::new();
                process.state = State::Ended { since: Some(since), at: now, code: 0, message };
            }
        }
        self.report(key, store, applications, now);
        let this = Some(uid(pod).to_owned());
        let how = Deletion { uid: this, grace: Some(0), ..Deletion::default() };
        let _ = store.delete(key, &how);
        None
    }

    /// Writes the pod's status; whether all its containers are ready or will never be.
    fn report(
        &self,
        key: &Key,
        store: &mut Store,
        applications: &mut dyn Application,
        now: Time,
    ) -> bool {
        let text_now = clock::rfc3339_seconds(now);
        let all = self.containers.values();
        let mut settled = true;
        let mut ready = true;
        let mut statuses = Vec::new();
        let running = all.clone().any(Process::running);
        let waiting = all.clone().any(|p| matches!(p.state, State::Waiting { .. }));
        let unborn = all.clone().any(|p| p.id.is_empty());
        let failed = all.clone().any(|p| matches!(p.state, State::Ended { code, .. } if code != 0));
        store.modify(key, |pod| {
            for container in list(pod, "/spec/containers") {
                let Some(process) = self.containers.get(text(container, "/name")) else { continue };
                let passes = process.running() && applications.ready(&process.id);
                settled &= passes || !process.running();
                ready &= passes;
                statuses.push(process.status(container, passes));
            }
            let phase = match (running, waiting, failed) {
                _ if unborn => "Pending",
                (true, _, _) | (_, true, _) => "Running",
                (_, _, true) => "Failed",
                _ => "Succeeded",
            };
            let gates = list(pod, "/spec/readinessGates");
            let open = gates.iter().all(|gate| condition(pod, text(gate, "/conditionType")));
            pod["status"]["phase"] = json!(phase);
            pod["status"]["podIP"] = json!(self.ip);
            pod["status"]["podIPs"] = json!([{ "ip": self.ip }]);
            if !has(pod, "/status/startTime") {
                pod["status"]["startTime"] = json!(text_now);
            }
            pod["status"]["containerStatuses"] = Value::Array(statuses);
            set_condition(pod, "PodScheduled", true, "", &text_now);
            set_condition(pod, "Initialized", true, "", &text_now);
            set_condition(pod, "ContainersReady", ready, "", &text_now);
            let reason = if ready && !open { "ReadinessGatesNotReady" } else { "" };
            set_condition(pod, "Ready", ready && open, reason, &text_now);
        });
        settled
    }
}

impl Process {
    fn new(due: Time) -> Self {
        let state = State::Waiting { reason: "ContainerCreating", message: String::new(), due };
        Self { id: String::new(), restarts: 0, pulled: false, state }
    }

    fn running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    fn due(&self) -> Option<Time> {
        match &self.state {
            State::Waiting { due, .. } => Some(*due),
            State::Running { ends, .. } => ends.as_ref().map(|(at, ..)| *at),
            State::Ended { .. } => None,
        }
    }

    fn step(
        &mut self,
        start: Start<'_>,
        pace: &Pace,
        started: &mut u64,
        applications: &mut dyn Application,
        now: Time,
    ) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        match &mut self.state {
            State::Waiting { .. } if !self.pulled => {
                match applications.pull(start.node, text(start.container, "/image")) {
                    Ok(takes) => {
                        self.pulled = true;
                        if !takes.is_zero() {
                            self.wait("ContainerCreating", String::new(), after(now, takes));
                            return;
                        }
                        self.begin(start, pace, started, applications, now);
                    }
                    Err(message) => {
                        self.wait("ImagePullBackOff", message, after(now, pace.backoff));
                    }
                }
            }
            State::Waiting { .. } => self.begin(start, pace, started, applications, now),
            State::Running { since, ends } => {
                let (_, code, message) = ends.take().unwrap_or_default();
                applications.ended(&self.id);
                self.state = State::Ended { since: Some(*since), at: now, code, message };
                self.restart(start, code, pace, now);
            }
            State::Ended { .. } => {}
        }
    }

    fn wait(&mut self, reason: &'static str, message: String, due: Time) {
        self.state = State::Waiting { reason, message, due };
    }

    fn begin(
        &mut self,
        start: Start<'_>,
        pace: &Pace,
        started: &mut u64,
        applications: &mut dyn Application,
        now: Time,
    ) {
        if let Some(why) = not_configurable(start.container) {
            return self.wait("CreateContainerConfigError", why, after(now, pace.backoff));
        }
        *started += 1;
        self.id = format!("cri-o://{:064x}", *started);
        self.state = match applications.start(Start { id: &self.id, ..start }) {
            Life::Runs => State::Running { since: now, ends: None },
            Life::Exits { after: lives, code, message } => {
                State::Running { since: now, ends: Some((after(now, lives), code, message)) }
            }
            // As the runtime reports it: ended, at no time that it was started at.
            Life::Fails { message } => State::Ended { since: None, at: now, code: 128, message },
        };
        if matches!(self.state, State::Ended { .. }) {
            self.restart(start, 128, pace, now);
        }
    }

    /// The container's own policy goes before its pod's.
    fn restart(&mut self, start: Start<'_>, code: i64, pace: &Pace, now: Time) {
        let policy = match text(start.container, "/restartPolicy") {
            "" => text(start.pod, "/spec/restartPolicy"),
            own => own,
        };
        if policy == "Never" || policy == "OnFailure" && code == 0 {
            return;
        }
        let due = if self.restarts == 0 { now } else { after(now, pace.backoff) };
        self.restarts += 1;
        self.wait("CrashLoopBackOff", format!("exit code {code}"), due);
    }

    fn status(&self, container: &Value, ready: bool) -> Value {
        let image = text(container, "/image");
        let at = |time: Time| clock::rfc3339_seconds(time);
        let state = match &self.state {
            State::Waiting { reason, message, .. } => {
                json!({ "waiting": { "reason": reason, "message": message } })
            }
            State::Running { since, .. } => json!({ "running": { "startedAt": at(*since) } }),
            State::Ended { since, at: ended, code, message } => json!({ "terminated": {
                "startedAt": at(since.unwrap_or(Time(0))), "finishedAt": at(*ended),
                "exitCode": code, "message": message, "containerID": self.id,
                "reason": match (since, code) {
                    (None, _) => "StartError",
                    (_, 0) => "Completed",
                    _ => "Error",
                },
            }}),
        };
        let mut status = json!({
            "name": name_of(container), "image": image, "imageID": "", "ready": ready,
            "restartCount": self.restarts, "started": self.running(), "state": state,
        });
        if !self.id.is_empty() {
            status["containerID"] = json!(self.id);
            status["imageID"] = json!(image);
        }
        status
    }
}

/// A mount's path may name variables of the container's own.
fn not_configurable(container: &Value) -> Option<String> {
    let known = |name: &str| list(container, "/env").iter().any(|it| text(it, "/name") == name);
    let paths = list(container, "/volumeMounts").iter().map(|mount| text(mount, "/subPathExpr"));
    let mut wanted = paths.filter_map(|path| Some(path.split_once("$(")?.1.split_once(')')?.0));
    let missing = wanted.find(|name| !known(name))?;
    Some(format!("failed to expand subpath expression: missing value for {missing:?}"))
}

fn name_of(container: &Value) -> &str {
    text(container, "/name")
}

/// The UID of a pod by name.
pub(super) fn pod_uid(store: &Store, namespace: &str, pod: &str) -> Option<String> {
    let found = store.get(&Key::new("pods", namespace, pod))?;
    debug_assert_eq!(name(found), pod);
    Some(uid(found).to_owned())
}
