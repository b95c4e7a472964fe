//! Act: carries out the protocol's effects, each idempotent, in order.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use shadow_broker::Session;
use shadow_protocol::broker::Topology;
use shadow_protocol::effect::{Effect, EffectId};
use shadow_protocol::names::listener;
use shadow_protocol::observation::{Archive, Owner, Trouble};
use shadow_protocol::phase::{Image, Phase, Plan};
use shadow_protocol::spec::ReplayMode;
use shadow_protocol::time::Time;

use crate::agents::{Agents, Moving};
use crate::cluster::Cluster;
use crate::observe::{broker_trouble, chain};
use crate::prepull::Wanted;
use crate::registry::Registry;
use crate::settings::Options;
use crate::target_pod::{TargetPlan, is_of, labels_at_switch, labels_for_services, target_pod};
use crate::{clock, kubelet, prepull};

/// Grace of a deletion in seconds: with 0 the API server would not wait for the kubelet to confirm
/// that the container is gone.
pub(crate) const SHORTEST_GRACE: u32 = 1;
/// Before a checkpoint is asked for again: the runtime may still be at one whose answer was lost, and
/// two of them at a time would spoil each other's files.
const RUNTIME_RESTS: Duration = Duration::from_secs(2);
/// ReplicaSets delete the pod with the lowest cost first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const LOWEST_COST: &str = "-2147483647";

/// What an effect came to.
pub enum Outcome {
    /// Done.
    Done,
    /// The kubelet's checkpoint.
    Checkpoint(Archive),
    /// A node agent moves the archive.
    Moving(Moving),
    /// Done, but for the Deployment's template: a sentence why.
    NotPinned(String),
}

/// Everything an effect may need.
pub struct Hands<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The way to the node agents, if there is one.
    pub agents: Option<&'a Agents>,
    /// The way to registries.
    pub registry: &'a dyn Registry,
    /// How the operator was started.
    pub options: &'a Options,
    /// The migration: namespace, name, UID.
    pub migration: &'a shadow_api::StatefulMigration,
    /// The broker, if this state needs it.
    pub session: Option<&'a dyn Session>,
    /// The primary queue's lock, if there is a queue.
    pub lock: Option<&'a str>,
    /// Where the migration is.
    pub phase: &'a Phase,
    /// Since when the present step runs.
    pub since: Time,
}

/// The reason of a trouble that the API server's next answer may mend.
pub(crate) const UNAVAILABLE: &str = "ApiUnavailable";

pub(crate) fn kube_trouble(attempted: &str, object: &str, error: &kube::Error) -> Trouble {
    let permanent = matches!(error, kube::Error::Api(s) if matches!(s.code, 400 | 403 | 422));
    Trouble {
        reason: if permanent { "ApiRefused" } else { UNAVAILABLE }.to_owned(),
        message: format!("{attempted} {object}: {}", chain(error)),
        permanent,
    }
}

pub(crate) fn not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

pub(crate) fn conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// A create can end in a conflict of another kind, as over a quota: then there is nothing yet.
pub(crate) fn exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

/// Limit for one call to the API server: one that stays silent must not use up a step's deadline.
pub const PATIENCE: Duration = Duration::from_secs(10);

impl Hands<'_> {
    /// Carries out one effect, within a limit. Done again, it bears the same ID.
    pub async fn perform(&self, effect: &Effect, id: &EffectId) -> Result<Outcome, Trouble> {
        let at_broker = match effect {
            Effect::Lock => self.lock.is_some(),
            Effect::Topology(_) | Effect::Order(_) => true,
            _ => false,
        };
        if at_broker || *effect == Effect::Checkpoint {
            // The broker's adapter and the kubelet's client have limits of their own.
            return Box::pin(self.carry_out(effect, id)).await;
        }
        let done = tokio::time::timeout(PATIENCE, Box::pin(self.carry_out(effect, id))).await;
        done.unwrap_or_else(|_| {
            let seconds = PATIENCE.as_secs();
            Err(Trouble {
                reason: "ApiUnavailable".to_owned(),
                message: format!("{}: no answer within {seconds} s", effect.name()),
                permanent: false,
            })
        })
    }

    async fn carry_out(&self, effect: &Effect, id: &EffectId) -> Result<Outcome, Trouble> {
        match effect {
            Effect::Lock if self.lock.is_none() => self.claim().await,
            Effect::Lock | Effect::Topology(_) | Effect::Order(_) => {
                self.at_broker(effect, id).await
            }
            Effect::Checkpoint => self.checkpoint().await,
            Effect::PrePull => self.pre_pull().await,
            Effect::PullCheckpoint => self.pull_checkpoint().await,
            Effect::DeletePrePull => self.delete_pre_pull().await,
            Effect::CreateJob => self.start_transfer().await,
            Effect::DeleteJob => self.end_transfer().await,
            Effect::CreateTarget => self.create_target().await,
            Effect::DeleteTarget => self.delete_target().await,
            Effect::OpenGate => self.open_gate().await,
            Effect::Announce => self.label_target(labels_for_services).await,
            Effect::PreferSource => self.deletion_cost(Some(LOWEST_COST)).await,
            Effect::UnpreferSource => self.deletion_cost(None).await,
            Effect::Adopt => self.label_target(labels_at_switch).await,
            Effect::Pin => self.pin().await,
            Effect::Unpin => self.unpin().await,
            Effect::ScaleDown { from } => self.scale_down(*from).await,
            Effect::ScaleUp { to } => self.scale_up(*to).await,
            Effect::DeleteSource => self.delete_source(self.plan()?, None).await,
            Effect::Vacate => self.delete_source(self.plan()?, Some(SHORTEST_GRACE)).await,
            Effect::MakeRoom => {
                self.delete_source(self.plan()?.origin(), Some(SHORTEST_GRACE)).await
            }
            Effect::Hold => self.hold().await,
            Effect::Release => self.release().await,
            Effect::Admit { node } => self.admit(node).await,
            Effect::Retire => self.retire().await,
            Effect::CloseBroker => {
                if let Some(session) = self.session {
                    session.close().await;
                }
                Ok(Outcome::Done)
            }
        }
    }

    async fn at_broker(&self, effect: &Effect, id: &EffectId) -> Result<Outcome, Trouble> {
        let session = self.session.ok_or_else(|| Trouble {
            reason: "BrokerUnreachable".to_owned(),
            message: "no connection to the broker".to_owned(),
            permanent: false,
        })?;
        let done = match effect {
            Effect::Lock => session.lock(self.lock.unwrap_or_default()).await,
            Effect::Topology(Topology::DeleteQueue { name }) if self.inherited(name).await? => {
                Ok(())
            }
            Effect::Topology(change) => session.apply(change).await,
            Effect::Order(order) => session.order(order, id).await,
            _ => Ok(()),
        };
        done.map(|()| Outcome::Done).map_err(|error| broker_trouble(&error))
    }

    /// Whether another pod goes on with a control queue: it bears the name of one that is gone.
    async fn inherited(&self, queue: &str) -> Result<bool, Trouble> {
        let Some(pod) = listener(queue) else { return Ok(false) };
        let found = tokio::time::timeout(PATIENCE, self.pods().get_opt(pod)).await;
        let trouble = |why: String| Trouble {
            reason: "ApiUnavailable".to_owned(),
            message: format!("look for a pod {pod} before deleting queue {queue}: {why}"),
            permanent: false,
        };
        match found {
            Ok(Ok(found)) => Ok(found.is_some()),
            Ok(Err(error)) => Err(trouble(chain(&error))),
            Err(_) => Err(trouble(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    pub(crate) fn namespace(&self) -> String {
        self.migration.namespace().unwrap_or_default()
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace())
    }

    pub(crate) fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace())
    }

    pub(crate) fn plan(&self) -> Result<&Plan, Trouble> {
        self.phase.plan().ok_or_else(|| Trouble {
            reason: "NoPlan".to_owned(),
            message: "the migration has no plan in this phase".to_owned(),
            permanent: true,
        })
    }

    /// The source stands still, and nothing comes of a call but an archive: it can be made again. What
    /// a call left whose answer was lost, the transfer Job removes.
    async fn checkpoint(&self) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let at = kubelet::Place {
            node: plan.source_node.clone(),
            namespace: self.namespace(),
            pod: plan.source_pod.clone(),
            container: plan.container.clone(),
        };
        let limit = self.options.protocol.deadlines.checkpoint;
        let left = Duration::from_millis(limit.saturating_sub(clock::now().since(self.since)));
        let patience = left.clamp(Duration::from_secs(1), kubelet::PATIENCE);
        let done = kubelet::checkpoint(&self.cluster.client, &at, patience).await;
        if done.as_ref().is_err_and(kubelet::Error::is_passing) {
            tokio::time::sleep(RUNTIME_RESTS).await;
        }
        done.map(Outcome::Checkpoint).map_err(|error| Trouble {
            reason: error.reason().to_owned(),
            message: error.to_string(),
            permanent: !error.is_passing(),
        })
    }

    async fn pre_pull(&self) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        self.pull(Wanted::Base, &plan.base_image).await
    }

    async fn pull_checkpoint(&self) -> Result<Outcome, Trouble> {
        self.pull(Wanted::Checkpoint, &self.image()?.reference).await
    }

    async fn pull(&self, wanted: Wanted, image: &str) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let name = prepull::pod_name(self.migration, wanted);
        if self.cluster.pod(&self.namespace(), &name).is_some() {
            return Ok(Outcome::Done);
        }
        let source = self.cluster.pod(&self.namespace(), &plan.source_pod);
        let source = source.map(|pod| (*pod).clone()).unwrap_or_default();
        let pod = prepull::pod(self.migration, wanted, &source, image, &plan.target_node);
        created(self.pods().create(&PostParams::default(), &pod).await, "create pod", &name)
    }

    async fn delete_pre_pull(&self) -> Result<Outcome, Trouble> {
        for wanted in [Wanted::Base, Wanted::Checkpoint] {
            let name = prepull::pod_name(self.migration, wanted);
            match self.pods().delete(&name, &DeleteParams::default().grace_period(0)).await {
                Err(error) if !not_found(&error) => {
                    return Err(kube_trouble("delete pod", &name, &error));
                }
                _ => {}
            }
        }
        Ok(Outcome::Done)
    }

    pub(crate) fn image(&self) -> Result<&Image, Trouble> {
        self.phase.image().ok_or_else(|| Trouble {
            reason: "NoImage".to_owned(),
            message: "no checkpoint image to restore".to_owned(),
            permanent: true,
        })
    }

    async fn create_target(&self) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let image = self.image()?;
        if let Some(found) = self.cluster.pod(&self.namespace(), &plan.target_pod)
            && is_of(&found, self.migration)
        {
            return Ok(Outcome::Done);
        }
        let source = self
            .pods()
            .get(&plan.source_pod)
            .await
            .map_err(|error| kube_trouble("read source pod", &plan.source_pod, &error))?;
        let pod = target_pod(
            &source,
            &TargetPlan {
                migration: self.migration,
                name: &plan.target_pod,
                container: &plan.container,
                image: &image.reference,
                transfer: plan.transfer,
                base_image: &plan.base_image,
                node: &plan.target_node,
                // In mode `Park` nobody but the copy has what it applies.
                beside: (plan.mode != ReplayMode::Park)
                    .then(|| format!("{} {}", plan.source_uid, plan.source_container_id)),
                replaced_by_owner: matches!(plan.owner, Owner::Deployment { .. }),
            },
        );
        created(
            self.pods().create(&PostParams::default(), &pod).await,
            "create target pod",
            &plan.target_pod,
        )
    }

    async fn delete_target(&self) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let name = &plan.target_pod;
        let found = match self.pods().get(name).await {
            Ok(found) => found,
            Err(error) if not_found(&error) => return Ok(Outcome::Done),
            Err(error) => return Err(kube_trouble("read target pod", name, &error)),
        };
        // A pod of that name that isn't ours is none of our business.
        if !is_of(&found, self.migration) {
            return Ok(Outcome::Done);
        }
        match self.pods().delete(name, &DeleteParams::default().grace_period(SHORTEST_GRACE)).await
        {
            Err(error) if !not_found(&error) => {
                Err(kube_trouble("delete target pod", name, &error))
            }
            _ => self.let_go(name).await,
        }
    }

    async fn open_gate(&self) -> Result<Outcome, Trouble> {
        let name = &self.plan()?.target_pod;
        let condition = json!({
            "type": shadow_api::GATE_HANDOFF,
            "status": "True",
            "reason": "HandedOff",
            "lastTransitionTime": clock::rfc3339_seconds(clock::now()),
        });
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        let done = self.pods().patch_status(name, &PatchParams::default(), &patch).await;
        patched(done, "open the readiness gate of target pod", name)
    }

    async fn deletion_cost(&self, cost: Option<&str>) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let name = &plan.source_pod;
        let annotated = self
            .cluster
            .pod(&self.namespace(), name)
            .is_some_and(|pod| pod.annotations().contains_key(DELETION_COST));
        if cost.is_none() && !annotated {
            return Ok(Outcome::Done);
        }
        // The UID makes it fail on another pod of that name.
        let patch = Patch::Merge(json!({ "metadata": {
            "uid": plan.source_uid,
            "annotations": { DELETION_COST: cost },
        }}));
        let done = self.pods().patch(name, &PatchParams::default(), &patch).await;
        // A conflict may also be a busy API server's: only another pod of that name is none of ours.
        if done.as_ref().is_err_and(conflict) {
            let found = self.pods().get_opt(name).await;
            let same = |pod: &Pod| pod.uid().as_deref() == Some(&plan.source_uid);
            if found.is_ok_and(|found| !found.as_ref().is_some_and(same)) {
                return Ok(Outcome::Done);
            }
        }
        patched(done, "set the deletion cost of source pod", name)
    }

    /// The source's ReplicaSet gets the target, and deletes the source.
    pub(crate) async fn adopt(&self) -> Result<Outcome, Trouble> {
        self.deletion_cost(Some(LOWEST_COST)).await?;
        self.label_target(labels_at_switch).await
    }

    /// Gives the target labels of the living source. A source that is gone already has been
    /// replaced: then the labels are there.
    async fn label_target(
        &self,
        chosen: fn(&Pod) -> BTreeMap<String, String>,
    ) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let Some(source) = self.cluster.pod(&self.namespace(), &plan.source_pod) else {
            return Ok(Outcome::Done);
        };
        let name = &plan.target_pod;
        let patch = Patch::Merge(json!({ "metadata": { "labels": chosen(&source) } }));
        let done = self.pods().patch(name, &PatchParams::default(), &patch).await;
        patched(done, "label target pod", name)
    }

    /// From now on the target is a workload's pod like any other, except that a crash must not
    /// restore the checkpoint again: its owner or `revive.rs` makes a fresh pod.
    async fn retire(&self) -> Result<Outcome, Trouble> {
        let name = &self.plan()?.target_pod;
        let patch = Patch::Merge(json!({ "metadata": { "labels": {
            shadow_api::LABEL_ROLE: shadow_api::names::ROLE_MOVED,
        }}}));
        let done = self.pods().patch(name, &PatchParams::default(), &patch).await;
        patched(done, "label moved pod", name)?;
        self.let_go(name).await
    }

    async fn delete_source(&self, plan: &Plan, grace: Option<u32>) -> Result<Outcome, Trouble> {
        let params = DeleteParams {
            preconditions: Some(kube::api::Preconditions {
                uid: Some(plan.source_uid.clone()),
                resource_version: None,
            }),
            grace_period_seconds: grace,
            ..DeleteParams::default()
        };
        match self.pods().delete(&plan.source_pod, &params).await {
            // 409: the pod of that name is another one, so ours is gone.
            Err(error) if !not_found(&error) && !conflict(&error) => {
                Err(kube_trouble("delete source pod", &plan.source_pod, &error))
            }
            _ => Ok(Outcome::Done),
        }
    }
}

pub(crate) fn created<K>(
    result: kube::Result<K>,
    attempted: &str,
    name: &str,
) -> Result<Outcome, Trouble> {
    match result {
        Err(error) if !exists(&error) => Err(kube_trouble(attempted, name, &error)),
        _ => Ok(Outcome::Done),
    }
}

fn patched<K>(result: kube::Result<K>, attempted: &str, name: &str) -> Result<Outcome, Trouble> {
    match result {
        Err(error) if !not_found(&error) => Err(kube_trouble(attempted, name, &error)),
        _ => Ok(Outcome::Done),
    }
}
