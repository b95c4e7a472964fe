//! The named pod, by its spec: what keeps it from being moved, and what will be different.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use shadow_protocol::freeze::{Liveness, predicted_ms};

use crate::facts::Patient;
use crate::finding::{Finding, Question};

/// A host name has at most so many characters; the kubelet cuts the rest of a pod's name off.
const HOST_NAME: usize = 63;
/// Words in the handlers of runtimes that run a container in a machine or a kernel of its own.
const SANDBOXES: [&str; 6] = ["kata", "runsc", "gvisor", "firecracker", "qemu", "clh"];

pub fn check(subject: &str, patient: &Patient) -> Vec<Finding> {
    let Some((spec, container)) = spec_of(&patient.pod, &patient.container) else {
        let question = Question { check: "container", subject };
        return vec![question.failure(
            format!("it has no container {}", patient.container),
            "name one of its containers with -c",
        )];
    };
    let mut findings = vec![running(subject, patient)];
    findings.extend(movable(subject, &patient.pod, &patient.container));
    findings.extend([sandbox(subject, patient), freeze(subject, patient, container)]);
    findings.extend(different(subject, spec, container, &|_| false));
    findings
}

/// What its spec says of whether its container can be moved.
pub fn movable(subject: &str, pod: &Pod, container: &str) -> Vec<Finding> {
    let Some((spec, container)) = spec_of(pod, container) else { return Vec::new() };
    vec![
        namespaces(subject, spec),
        host_name(subject, pod, spec),
        terminal(subject, container),
        devices(subject, spec, container),
    ]
}

/// What will be different after a move: volumes, unless nothing is in them, and the other containers.
pub fn different(
    subject: &str,
    spec: &PodSpec,
    container: &Container,
    is_empty: &dyn Fn(&str) -> bool,
) -> Vec<Finding> {
    let mut findings = volumes(subject, spec, container, is_empty);
    findings.extend(others(subject, spec, container));
    findings
}

/// A pod's spec and one of its containers.
pub fn spec_of<'a>(pod: &'a Pod, container: &str) -> Option<(&'a PodSpec, &'a Container)> {
    let spec = pod.spec.as_ref()?;
    Some((spec, spec.containers.iter().find(|it| it.name == container)?))
}

fn running(subject: &str, patient: &Patient) -> Finding {
    let question = Question { check: "running", subject };
    let statuses = patient.pod.status.iter().flat_map(|it| it.container_statuses.iter().flatten());
    let own = statuses.filter(|it| it.name == patient.container);
    let mut own = own.filter_map(|it| it.state.as_ref()?.running.as_ref());
    if own.next().is_some() {
        return question.ok(format!("container {} is running", patient.container));
    }
    question.failure(
        format!("container {} is not running: there is nothing to move", patient.container),
        "wait until it runs, or see why it does not: kubectl describe pod",
    )
}

fn namespaces(subject: &str, spec: &PodSpec) -> Finding {
    let question = Question { check: "namespaces", subject };
    let shared = [
        (
            spec.host_users == Some(false),
            "hostUsers: false",
            "a user namespace of its own can't be dumped",
        ),
        (spec.host_network == Some(true), "hostNetwork: true", "the node's network stays behind"),
        (
            spec.host_pid == Some(true),
            "hostPID: true",
            "its process IDs may be taken where it goes",
        ),
        (
            spec.share_process_namespace == Some(true),
            "shareProcessNamespace: true",
            "its process IDs may be taken where it goes",
        ),
        (spec.host_ipc == Some(true), "hostIPC: true", "the node's shared memory stays behind"),
    ];
    match shared.iter().find(|(has, ..)| *has) {
        Some((_, field, why)) => {
            question.failure(format!("{field}: {why}"), format!("leave {field} out of its spec"))
        }
        None => question.ok("its namespaces are its own, and its users the node's"),
    }
}

/// An application finds its control queue by /etc/hostname, which must be its pod's name.
fn host_name(subject: &str, pod: &Pod, spec: &PodSpec) -> Finding {
    let question = Question { check: "host-name", subject };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let given = spec.hostname_override.as_deref().or(spec.hostname.as_deref());
    if let Some(given) = given.filter(|given| *given != name) {
        return question.failure(
            format!("its /etc/hostname would be {given} in both copies: they would share one control queue"),
            "leave hostname out of its spec",
        );
    }
    if spec.set_hostname_as_fqdn == Some(true) {
        return question.failure(
            "its /etc/hostname is not its name (setHostnameAsFQDN: true)",
            "leave setHostnameAsFQDN out of its spec",
        );
    }
    if name.len() > HOST_NAME {
        return question.failure(
            format!("its name has more than {HOST_NAME} characters, so that its /etc/hostname is not its name"),
            "give it a shorter name",
        );
    }
    question.ok("its /etc/hostname is its name")
}

fn terminal(subject: &str, container: &Container) -> Finding {
    let question = Question { check: "terminal", subject };
    if container.tty == Some(true) || container.stdin == Some(true) {
        return question.failure(
            "it has a terminal (tty or stdin), which can't be dumped",
            "leave tty and stdin out of its spec",
        );
    }
    question.ok("its spec gives it no terminal")
}

fn devices(subject: &str, spec: &PodSpec, container: &Container) -> Finding {
    let question = Question { check: "devices", subject };
    let limits = container.resources.iter().flat_map(|it| it.limits.iter().flatten());
    let mut used: Vec<&str> = limits
        .map(|(name, _)| name.as_str())
        .filter(|name| name.contains('/') && !name.starts_with("hugepages-"))
        .collect();
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        used.push("resourceClaims");
    }
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        used.push("volumeDevices");
    }
    if used.is_empty() {
        return question.ok("its spec gives it no device");
    }
    question.failure(
        format!("it uses {}, whose state stays behind", used.join(", ")),
        "leave the pod where it is, or do without the device",
    )
}

fn sandbox(subject: &str, patient: &Patient) -> Finding {
    let question = Question { check: "runtime-class", subject };
    match &patient.handler {
        None => question.ok("it runs with the node's default runtime"),
        Some(Err(why)) => question.unknown(why),
        Some(Ok(handler)) if SANDBOXES.iter().any(|word| handler.as_str().contains(word)) => {
            question.failure(
                format!(
                    "its RuntimeClass's handler {handler} runs it in a sandbox, which CRIU can't \
                     see into"
                ),
                "use a RuntimeClass whose handler is crun or runc",
            )
        }
        Some(Ok(handler)) => question
            .note(format!("its RuntimeClass's handler is {handler}, which all nodes must have")),
    }
}

fn freeze(subject: &str, patient: &Patient, container: &Container) -> Finding {
    let question = Question { check: "freeze", subject };
    let memory = match &patient.memory {
        Ok(memory) => *memory,
        Err(why) => return question.unknown(why),
    };
    let freeze = predicted_ms(Some(memory));
    let reason =
        format!("a checkpoint of its {} MB stops it for about {freeze} ms", memory / 1_000_000);
    if liveness(container).is_some_and(|probe| !probe.outlasts(freeze)) {
        return question.failure(
            format!("{reason}, and its liveness probe would end it meanwhile"),
            "give the liveness probe a longer timeoutSeconds, or a larger failureThreshold",
        );
    }
    question.ok(reason)
}

/// The liveness probe, with the defaults of Kubernetes.
fn liveness(container: &Container) -> Option<Liveness> {
    let probe = container.liveness_probe.as_ref()?;
    let positive = |given: Option<i32>, default: u32| {
        given.and_then(|it| u32::try_from(it).ok()).filter(|it| *it > 0).unwrap_or(default)
    };
    Some(Liveness {
        period_ms: u64::from(positive(probe.period_seconds, 10)) * 1_000,
        timeout_ms: u64::from(positive(probe.timeout_seconds, 1)) * 1_000,
        failures: positive(probe.failure_threshold, 3),
    })
}

fn volumes(
    subject: &str,
    spec: &PodSpec,
    container: &Container,
    is_empty: &dyn Fn(&str) -> bool,
) -> Vec<Finding> {
    let question = Question { check: "volumes", subject };
    let volumes = spec.volumes.iter().flatten();
    let mut findings: Vec<Finding> = volumes
        .filter(|volume| !is_empty(&volume.name))
        .filter_map(|volume| other_there(question, spec, container, volume))
        .collect();
    if findings.is_empty() {
        findings.push(question.ok("its volumes are there on every node"));
    }
    findings
}

/// Files that another container of the pod works with are missed, too; a token only by who has read it.
fn other_there(
    question: Question<'_>,
    spec: &PodSpec,
    container: &Container,
    volume: &Volume,
) -> Option<Finding> {
    let name = &volume.name;
    let mounts = |it: &Container| it.volume_mounts.iter().flatten().any(|it| it.name == *name);
    let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
    if mounts(container) && sources.filter(|it| it.service_account_token.is_some()).count() > 0 {
        return Some(question.warning(
            format!(
                "the service account token that it has read from volume {name} is its old pod's, and \
                 not valid for long once that is gone"
            ),
            "have it read the file again for each use, or set automountServiceAccountToken: false",
        ));
    }
    if !spec.containers.iter().any(mounts) {
        return None;
    }
    let remedy = "keep what must last in a volume claim that is ReadWriteMany";
    if volume.empty_dir.is_some() || volume.ephemeral.is_some() {
        return Some(question.warning(
            format!("the files of volume {name} stay behind: the copy gets an empty one"),
            remedy,
        ));
    }
    if volume.host_path.is_some() {
        return Some(question.warning(
            format!("volume {name} is a folder of the node: the copy sees its own node's"),
            remedy,
        ));
    }
    let claim = volume.persistent_volume_claim.as_ref()?;
    Some(question.note(format!(
        "volume claim {} moves along if it is ReadWriteMany; else only strategy Sequential moves it",
        claim.claim_name
    )))
}

fn others(subject: &str, spec: &PodSpec, container: &Container) -> Option<Finding> {
    let question = Question { check: "containers", subject };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let others = spec.containers.iter().filter(|it| it.name != container.name).chain(sidecars);
    let names: Vec<&str> = others.map(|it| it.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        question.note(format!(
            "only container {} keeps its memory; these start afresh: {}",
            container.name,
            names.join(", ")
        ))
    })
}
