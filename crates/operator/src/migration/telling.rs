//! What a migration says besides its status: events, and the log.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, Recorder};
use kube::{Resource, ResourceExt};
use shadow_api::MessageQueueConfig;
use shadow_protocol::observation::Trouble;
use shadow_protocol::phase::{Pin, Plan};

use super::{Context, Migration};
use crate::act::UNAVAILABLE;
use crate::observe::chain;
use crate::problems::pod_warnings;
use crate::report;

/// Limit for publishing an event.
const EVENT: Duration = Duration::from_secs(2);

impl Context {
    /// Publishes an event about an object; one that can't be is named in the log.
    pub async fn publish(&self, event: &Event, about: &ObjectReference) {
        // One that remembers would count two sentences with the same reason as the first of them, twice.
        let recorder = Recorder::new(self.cluster.client.clone(), self.reporter.clone());
        // Nobody waits for an event.
        match tokio::time::timeout(EVENT, recorder.publish(event, about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(why = chain(&error), "can't publish an event"),
            Err(_) => tracing::warn!("no answer to an event"),
        }
    }
}

impl Migration {
    /// An event, once.
    pub(super) async fn say(&mut self, reason: &str, sentence: &str, warning: bool) {
        if self.memory.said == sentence {
            return;
        }
        sentence.clone_into(&mut self.memory.said);
        self.publish(report::event(reason, sentence.to_owned(), warning)).await;
    }

    /// What the user should know before it happens, an event each.
    pub(super) async fn warn(&self, plan: &Plan) {
        let namespace = self.object.namespace().unwrap_or_default();
        let source = self.context.cluster.pod(&namespace, &plan.source_pod);
        let usage = self.memory.usage.clone().unwrap_or_default();
        if let Pin::Skipped { why, asked } = &plan.pin {
            self.publish(report::event("NotPinned", why.clone(), *asked)).await;
        }
        for warning in source.iter().flat_map(|pod| pod_warnings(pod, &plan.container, &usage)) {
            self.publish(report::event("StaysBehind", warning, true)).await;
        }
        let looked = self.memory.looked.get(&plan.target_node);
        if let Some(doubt) = &usage.unknown {
            self.publish(report::event("Preflight", doubt.clone(), true)).await;
        }
        for doubt in looked.iter().flat_map(|looked| &looked.doubts) {
            self.publish(report::event("Preflight", doubt.clone(), true)).await;
        }
        if plan.alone() {
            self.publish(report::nothing_replays(plan)).await;
        }
        let queue = self.object.spec.message_queue_config.as_ref();
        if queue.is_some_and(MessageQueueConfig::has_password) {
            let note = "messageQueueConfig.brokerUrl contains a password, which everyone who may \
                        read this object can see; move the URL to a Secret and name it in \
                        brokerSecretRef";
            self.publish(report::event("PasswordInSpec", note.to_owned(), true)).await;
        }
    }

    pub(super) async fn publish(&self, event: Event) {
        self.context.publish(&event, &self.object.object_ref(&())).await;
    }

    /// Says what the status can't.
    pub(super) async fn complain(&mut self, trouble: &Trouble) {
        tracing::warn!(message = trouble.message, "failed");
        if trouble.reason != UNAVAILABLE {
            self.say(&trouble.reason, &trouble.message, true).await;
        }
    }
}
