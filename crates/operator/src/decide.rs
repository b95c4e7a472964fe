//! Decide: the object in the protocol's terms. The deciding itself is `shadow_protocol::decide`.

use kube::{Client, ResourceExt};
use shadow_api as api;
use shadow_api::StatefulMigration;
use shadow_broker::Target;
use shadow_protocol::phase::{FORMAT_VERSION, State};
use shadow_protocol::spec::{IdentitySwap, ReplayMode, Spec, Strategy, Transfer};

use crate::observe::chain;
use crate::secret;

/// The object's spec as the protocol wants it.
pub fn spec(object: &StatefulMigration) -> Spec {
    let spec = &object.spec;
    let queue = spec.message_queue_config.as_ref();
    Spec {
        uid: object.uid().unwrap_or_default(),
        source_pod: spec.source_pod.clone(),
        container: spec.container_name.clone(),
        target_node: spec.target_node.clone(),
        repository: spec.checkpoint_image_repository.clone(),
        strategy: spec.migration_strategy.map(|strategy| match strategy {
            api::MigrationStrategy::ShadowPod => Strategy::ShadowPod,
            api::MigrationStrategy::Sequential => Strategy::Sequential,
        }),
        transfer: match spec.transfer_mode {
            api::TransferMode::Registry => Transfer::Registry,
            api::TransferMode::Direct => Transfer::Direct,
        },
        replay_mode: spec.replay_mode.map(|mode| match mode {
            api::ReplayMode::Cutoff => ReplayMode::Cutoff,
            api::ReplayMode::Drain => ReplayMode::Drain,
            api::ReplayMode::Park => ReplayMode::Park,
        }),
        cutoff_ms: u64::from(spec.replay_cutoff_seconds).saturating_mul(1_000),
        identity_swap: match spec.identity_swap_mode {
            api::IdentitySwapMode::None => IdentitySwap::None,
            api::IdentitySwapMode::ExchangeFence => IdentitySwap::ExchangeFence,
            api::IdentitySwapMode::Cutoff => IdentitySwap::Cutoff,
        },
        pin: spec.pin_to_target_node,
        queue: queue.map(|queue| queue.queue_name.clone()),
        exchange: queue.map(|queue| queue.exchange_name.clone()).unwrap_or_default(),
        abort: spec.abort,
        deleted: object.metadata.deletion_timestamp.is_some(),
    }
}

/// The state stored in the object; `None` when nobody has looked at it yet. The error is a
/// sentence: the state was written by a newer version, or by nobody we know.
pub fn stored(object: &StatefulMigration) -> Result<Option<State>, String> {
    let Some(status) = &object.status else { return Ok(None) };
    let Some(state) = &status.state else { return Ok(None) };
    let version = status.format_version.unwrap_or(FORMAT_VERSION);
    if version > FORMAT_VERSION {
        return Err(format!(
            "the state was stored in format {version} by a newer operator; this one knows format \
             {FORMAT_VERSION} and waits; upgrade it again"
        ));
    }
    serde_json::from_value(state.clone()).map(Some).map_err(|error| {
        format!("the state in status.state can't be read ({error}); it must not be edited by hand")
    })
}

/// Whether a migration needs no task any more.
pub fn is_over(object: &StatefulMigration) -> bool {
    let over = matches!(stored(object), Ok(Some(state)) if state.phase.is_final());
    over && object.finalizers().is_empty() && object.spec.ttl_seconds_after_finished.is_none()
}

/// Where the broker is and how to log in.
pub async fn broker_target(
    client: &Client,
    object: &StatefulMigration,
) -> Result<Target, shadow_broker::Error> {
    let invalid =
        |what: &str, why: String| shadow_broker::Error::Invalid { what: what.to_owned(), why };
    let Some(config) = &object.spec.message_queue_config else {
        return Err(invalid("messageQueueConfig", "is missing".to_owned()));
    };
    let url = match &config.broker_secret_ref {
        Some(secret) => {
            let namespace = object.namespace().unwrap_or_default();
            let what = format!("Secret {namespace}/{} key {}", secret.name, secret.key);
            secret::text(client, &namespace, &secret.name, &secret.key)
                .await
                .map_err(|error| invalid(&what, chain(&error)))?
                .trim()
                .to_owned()
        }
        None => config.broker_url.clone().unwrap_or_default(),
    };
    Ok(Target { url, management_url: config.management_url.clone() })
}
