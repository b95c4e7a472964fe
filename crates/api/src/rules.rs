//! CEL rules: what the API server refuses, and the sentence that says what to write instead.

use kube::core::Rule;

/// Spec fields that are always there (required, or with a default) and can't be changed.
const FIXED: &[&str] = &["sourcePod", "transferMode", "replayCutoffSeconds", "identitySwapMode"];
/// Spec fields that may be absent and can't be changed.
const FIXED_OPTIONAL: &[&str] = &[
    "containerName",
    "targetNode",
    "checkpointImageRepository",
    "migrationStrategy",
    "replayMode",
    "messageQueueConfig",
    "pinToTargetNode",
];
/// Spec fields that may change while a migration is under way.
pub const CHANGEABLE: &[&str] = &["abort", "ttlSecondsAfterFinished"];

fn rule(expression: impl Into<String>, sentence: &str) -> Rule {
    Rule::new(expression).message(sentence)
}

/// A name that Kubernetes can have given to a pod or a node.
fn dns_name(sentence: &str) -> Rule {
    rule("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')", sentence)
}

/// The migration's name becomes a label's value.
pub fn migration_name() -> Rule {
    rule(
        "size(self.metadata.name) <= 63",
        "metadata.name becomes a label: write a name of at most 63 characters",
    )
}

/// All but [`CHANGEABLE`] stays as it was created.
pub fn unchanged() -> Rule {
    let fixed = FIXED.iter().map(|field| format!("self.{field} == oldSelf.{field}"));
    let optional = FIXED_OPTIONAL.iter().map(|field| {
        format!(
            "has(self.{field}) == has(oldSelf.{field}) && \
             (!has(self.{field}) || self.{field} == oldSelf.{field})"
        )
    });
    let all: Vec<String> = fixed.chain(optional).collect();
    rule(
        all.join(" && "),
        "a migration can't be changed once it exists, except for abort and \
         ttlSecondsAfterFinished: delete it and create another one",
    )
}

/// `Registry` needs a repository.
pub fn repository_given() -> Rule {
    rule(
        "self.transferMode != 'Registry' || has(self.checkpointImageRepository)",
        "transferMode Registry (the default) needs checkpointImageRepository: write the repository \
         that takes the checkpoint image, such as registry.example.com:5000/checkpoints",
    )
}

/// The second hop belongs to `ShadowPod`.
pub fn swap_with_shadow_pod() -> Rule {
    rule(
        "self.identitySwapMode == 'None' || \
         (has(self.migrationStrategy) && self.migrationStrategy == 'ShadowPod')",
        "identitySwapMode needs migrationStrategy ShadowPod: write migrationStrategy: ShadowPod, or \
         leave identitySwapMode out",
    )
}

/// Without a queue there is nothing to replay.
pub fn replay_mode_with_queue() -> Rule {
    rule(
        "!has(self.replayMode) || has(self.messageQueueConfig)",
        "replayMode says how what waits in a queue is handed over: leave it out for a pod that \
         consumes none, or write messageQueueConfig",
    )
}

/// Without a queue nothing brings a second copy up to date.
pub fn shadow_pod_with_queue() -> Rule {
    rule(
        "!has(self.migrationStrategy) || self.migrationStrategy != 'ShadowPod' || \
         has(self.messageQueueConfig)",
        "migrationStrategy ShadowPod runs two copies, and only a queue brings the second up to date: \
         write messageQueueConfig, or migrationStrategy: Sequential for a StatefulSet's pod",
    )
}

/// `sourcePod`.
pub fn pod_name() -> Rule {
    dns_name(
        "sourcePod is a pod's name: write the name of a running pod of this namespace, such as \
         consumer-0",
    )
}

/// `containerName`.
pub fn container_name() -> Rule {
    rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "containerName is the name of one of the pod's containers: write it, or leave it out for \
         the first one",
    )
}

/// `targetNode`.
pub fn node_name() -> Rule {
    dns_name(
        "targetNode is a node's name: write one that `kubectl get nodes` shows, or leave it out for \
         any node but the source's",
    )
}

/// `checkpointImageRepository`: with its registry's host, and nothing but host and path.
pub fn repository_form() -> [Rule; 4] {
    const TAGGED: &str = "self.matches('/[^/]*:[^/]*$')";
    let bare = "!self.contains('://')";
    let untagged = format!("self.contains('://') || !{TAGGED} || self.contains('@')");
    let formed = format!(
        "self.contains('://') || self.contains('@') || {TAGGED} || \
         self.matches('^([a-zA-Z0-9-]+(\\\\.[a-zA-Z0-9-]+)+(:[0-9]+)?|[a-zA-Z0-9-]+:[0-9]+|localhost)\
         (/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)+$')"
    );
    [
        rule(
            bare,
            "checkpointImageRepository is written without a scheme: \
             registry.example.com:5000/checkpoints, not https://registry.example.com:5000/checkpoints",
        ),
        rule(
            "!self.contains('@')",
            "checkpointImageRepository is written without a digest: leave out the @ and what \
             follows it",
        ),
        rule(
            untagged,
            "checkpointImageRepository is written without a tag (every migration makes its own): \
             leave out the last : and what follows it",
        ),
        rule(
            formed,
            "checkpointImageRepository is a registry's host and a path in lower case: write for \
             example registry.example.com:5000/checkpoints or docker.io/me/checkpoints",
        ),
    ]
}

/// `replayCutoffSeconds`.
pub fn cutoff() -> Rule {
    rule(
        "self >= 1",
        "replayCutoffSeconds is the longest catch-up in seconds: write 1 or more, or leave it out \
         for 120",
    )
}

/// `messageQueueConfig.queueName`.
pub fn queue_name() -> Rule {
    rule(
        "self != ''",
        "queueName is the queue that the application consumes: write its name, or leave \
         messageQueueConfig out for a pod that consumes none",
    )
}

/// `messageQueueConfig` says where the broker is.
pub fn broker_given() -> Rule {
    rule(
        "has(self.brokerUrl) || has(self.brokerSecretRef)",
        "messageQueueConfig needs the broker's address: write brokerUrl, such as \
         amqp://rabbitmq.default.svc:5672, or brokerSecretRef with the name and key of a Secret \
         that holds the URL",
    )
}

/// `messageQueueConfig.brokerUrl`.
pub fn broker_url() -> Rule {
    rule(
        "self.matches('^amqps?://[^/[:space:]]+(/[^[:space:]]*)?$')",
        "brokerUrl is an AMQP 0-9-1 address: write amqp://HOST:PORT/VHOST, or amqps:// for TLS, \
         such as amqp://rabbitmq.default.svc:5672",
    )
}

/// `messageQueueConfig.managementUrl`.
pub fn management_url() -> Rule {
    rule(
        "self.matches('^https?://[^/[:space:]]+(/[^[:space:]]*)?$')",
        "managementUrl is the address of the broker's management API: write http://HOST:PORT or \
         https://HOST:PORT, or leave it out for the broker's host and port 15672",
    )
}

/// `messageQueueConfig.brokerSecretRef.name`.
pub fn secret_name() -> Rule {
    dns_name("brokerSecretRef.name is the name of a Secret of this namespace: write it")
}

/// `messageQueueConfig.brokerSecretRef.key`.
pub fn secret_key() -> Rule {
    rule(
        "self.matches('^[-._a-zA-Z0-9]+$')",
        "brokerSecretRef.key is the key in the Secret whose value is the broker's URL: write it, \
         such as url",
    )
}
