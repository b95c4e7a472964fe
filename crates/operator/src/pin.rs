//! A Deployment that is pinned to the node its pod has moved to, and the pod keeps its memory
//! (`docs/adr/0004-pinned-by-a-replica-set.md`).
//!
//! ```text
//! pause + new template   one write: no rollout begins in between
//! label the target       before its ReplicaSet is there, or that would want a pod of its own
//! deny others            pods with that label: its ReplicaSet may hear of the target late
//! create the ReplicaSet  its controller adopts the target, the Deployment's takes it over
//! unpause                only when both are seen: the source's ReplicaSet goes to 0
//! ```
//!
//! Each part is looked for before it is done, so all of it can be done again from any of them.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, PropagationPolicy,
};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use shadow_protocol::observation::{Owner, Trouble};
use shadow_protocol::pending::{not_pinned, obstacle};
use shadow_protocol::phase::{Phase, Plan, SwitchStep};

use crate::act::{Hands, Outcome, exists, kube_trouble, not_found};
use crate::affinity::{HOST_NAME, pinned, pinned_by, unpinned};
use crate::target_pod::{OWNERS_LABEL, labels_at_switch};

mod rollout;

pub use rollout::rollout_of;
use rollout::{api, is_observed, read, rollout, same_template, template};

/// Annotation of a Deployment that is paused for the moment: the migration's UID.
pub(crate) const PAUSED_BY: &str = "migration.ms2m.io/paused-by";
/// By which the Deployment's controller numbers the ReplicaSets that it has taken for its own.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Pods and ReplicaSets reach the controller over two watches: the label must be the first. Where the API server
/// can't deny its ReplicaSet a pod, so much time is left for that.
const SETTLES: Duration = Duration::from_secs(1);
/// Between two looks at the source meanwhile.
const GLANCE: Duration = Duration::from_millis(10);
/// How often, and how many times, what controllers do is looked for before the effect is tried again.
const LOOKS: (Duration, u32) = (Duration::from_millis(100), 20);

/// Whether the migration with this `uid` has made the ReplicaSet that pins `plan`'s Deployment.
pub async fn is_pinned(
    client: &Client,
    namespace: &str,
    plan: &Plan,
    uid: &str,
) -> Result<bool, Trouble> {
    let Owner::Deployment { deployment, .. } = &plan.owner else { return Ok(false) };
    let set = read::<ReplicaSet>(client, namespace, &set_name(deployment, uid)).await?;
    Ok(set.is_some())
}

/// Letters and digits of the migration's UID: like a template's digest, and no template's.
fn hash(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_alphanumeric).take(10).collect()
}

fn set_name(deployment: &str, uid: &str) -> String {
    format!("{deployment}-{}", hash(uid))
}

/// The ReplicaSet of `template` as the Deployment's controller would make it.
fn replica_set(deployment: &DynamicObject, template: &Value, uid: &str) -> DynamicObject {
    let (spec, hash) = (&deployment.data["spec"], hash(uid));
    let mut template = template.clone();
    template["metadata"]["labels"][OWNERS_LABEL] = json!(hash);
    let mut selector = spec["selector"].clone();
    selector["matchLabels"][OWNERS_LABEL] = json!(hash);
    let name = set_name(&deployment.name_any(), uid);
    let mut set = DynamicObject::new(&name, &ApiResource::erase::<ReplicaSet>(&()));
    set.metadata.labels =
        serde_json::from_value(template["metadata"]["labels"].clone()).unwrap_or_default();
    let owner = deployment.controller_owner_ref(&ApiResource::erase::<Deployment>(&()));
    set.metadata.owner_references =
        owner.map(|owner| vec![OwnerReference { block_owner_deletion: Some(true), ..owner }]);
    set.data = json!({ "spec": {
        "replicas": 1,
        "minReadySeconds": spec["minReadySeconds"].as_i64().unwrap_or(0),
        "selector": selector,
        "template": template,
    }});
    set
}

fn wait(what: String) -> Trouble {
    Trouble { reason: "Pinning".to_owned(), message: what, permanent: false }
}

/// The target as its ReplicaSet will see it.
enum Adoption {
    /// By the new ReplicaSet.
    Done,
    /// Not yet.
    Waits,
    /// It has ended, or is about to: there is nobody to adopt.
    Never,
}

/// What the controllers do in their own time.
#[derive(Clone, Copy)]
enum Expected<'a> {
    /// The Deployment's controller has seen its new template: by the old one it would take the new ReplicaSet for
    /// one of before, and scale it to 0.
    Observed(&'a str),
    /// The Deployment's controller has seen this ReplicaSet, and makes none of its own.
    TakenOver(&'a str),
    /// This ReplicaSet's controller has seen the target, or there is nobody to be seen.
    Adopted { by: &'a str, or_nobody: bool },
    /// This ReplicaSet has no pods any more.
    Emptied(&'a str),
}

impl Hands<'_> {
    /// Pins the Deployment, unless that would restart anybody by now: then the target is adopted
    /// without.
    pub(crate) async fn pin(&self) -> Result<Outcome, Trouble> {
        let (name, source_set) = self.deployment()?;
        let Some(mut deployment) = self.read::<Deployment>(name).await? else {
            // Its pods go with it.
            return self.adopt().await;
        };
        if self.source_is_going() && self.read::<ReplicaSet>(&self.new_set(name)).await?.is_none() {
            return self.give_up(name, source_set).await;
        }
        if !self.has_pinned(&deployment) {
            let old = self.read::<ReplicaSet>(source_set).await?;
            let new = pinned(&deployment.data["spec"]["template"], &self.host(), &self.uid());
            if let Some(why) = self.obstacle(&deployment, old.as_ref(), &new).await? {
                self.adopt().await?;
                return Ok(Outcome::NotPinned(why));
            }
            deployment.data["spec"]["template"] = new;
            deployment.data["spec"]["paused"] = json!(true);
            deployment.annotations_mut().insert(PAUSED_BY.to_owned(), self.uid());
            deployment = match self.write(&deployment).await {
                Err(Trouble { permanent: true, message, .. }) => {
                    self.adopt().await?;
                    return Ok(Outcome::NotPinned(not_pinned(name, &message)));
                }
                written => written?,
            };
        }
        if deployment.annotations().get(PAUSED_BY) == Some(&self.uid()) {
            if !self.hand_to_new_set(&deployment).await? {
                return self.give_up(name, source_set).await;
            }
            resume(&mut deployment);
            self.write(&deployment).await?;
        }
        // Whoever deletes the source from now on, no fresh pod comes in its place.
        self.until(Expected::Emptied(source_set)).await?;
        Ok(Outcome::Done)
    }

    /// Somebody else deletes the source: its ReplicaSet, which still wants a pod, would make a fresh one.
    fn source_is_going(&self) -> bool {
        let Ok(plan) = self.plan() else { return false };
        let source = self.cluster.pod(&self.namespace(), &plan.source_pod);
        source.is_none_or(|source| {
            source.metadata.deletion_timestamp.is_some()
                || source.uid().as_deref() != Some(&plan.source_uid)
        })
    }

    /// The source's ReplicaSet gets the target before a fresh pod of its own has started: of the two it
    /// deletes the one that is not ready. Then the template is as it was.
    async fn give_up(&self, name: &str, source_set: &str) -> Result<Outcome, Trouble> {
        if let Some(set) = self.read::<ReplicaSet>(source_set).await? {
            let hash = &set.data["spec"]["template"]["metadata"]["labels"][OWNERS_LABEL];
            self.label(json!({ OWNERS_LABEL: hash })).await?;
        }
        self.allow().await?;
        self.restore(name, source_set).await?;
        let why = "somebody has deleted the pod's source meanwhile, and its ReplicaSet replaces it";
        Ok(Outcome::NotPinned(not_pinned(name, why)))
    }

    /// Until the new ReplicaSet has the target, and the Deployment's controller the ReplicaSet; false if
    /// the source is going before there is one.
    async fn hand_to_new_set(&self, deployment: &DynamicObject) -> Result<bool, Trouble> {
        let plan = self.plan()?;
        // The copy is all there is, or its end is the workload's own: its owner makes a fresh pod.
        let committed =
            matches!(self.phase, Phase::Finalizing { step: SwitchStep::Replace(Some(_)), .. });
        let set = self.new_set(&deployment.name_any());
        if self.read::<ReplicaSet>(&set).await?.is_none() {
            self.label(self.new_labels(deployment)?).await?;
            tokio::select! {
                biased;
                () = self.source_goes() => return Ok(false),
                heard = self.hear_of_the_target(deployment) => heard?,
            }
            if !committed && matches!(self.adoption().await?, Adoption::Never) {
                return Err(wait(format!("target pod {} has ended", plan.target_pod)));
            }
            let new = replica_set(deployment, &deployment.data["spec"]["template"], &self.uid());
            let made = self.replica_sets().create(&PostParams::default(), &new).await;
            if let Err(error) = made.as_ref()
                && !exists(error)
            {
                return Err(kube_trouble("create ReplicaSet", &set, error));
            }
        }
        self.until(Expected::TakenOver(&set)).await?;
        self.until(Expected::Adopted { by: &set, or_nobody: committed }).await?;
        self.allow().await?;
        Ok(true)
    }

    async fn source_goes(&self) {
        while !self.source_is_going() {
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// A pod that the new ReplicaSet made beside the target would consume its queue.
    async fn hear_of_the_target(&self, deployment: &DynamicObject) -> Result<(), Trouble> {
        self.until(Expected::Observed(&deployment.name_any())).await?;
        if !self.options.protocol.admission {
            tokio::time::sleep(SETTLES).await;
            return Ok(());
        }
        let template = replica_set(deployment, &deployment.data["spec"]["template"], &self.uid());
        let mut pod = template.data["spec"]["template"].clone();
        pod["metadata"]["name"] = json!(format!("{}-denied", template.name_any()));
        let pod: Pod = serde_json::from_value(pod).map_err(|error| Trouble {
            reason: "Pinning".to_owned(),
            message: format!("read the template of Deployment {}: {error}", deployment.name_any()),
            permanent: false,
        })?;
        self.deny_others(&hash(&self.uid()), &pod).await.map(|_| ())
    }

    /// The template of the source's ReplicaSet again, then the new ReplicaSet goes, and what it has.
    pub(crate) async fn unpin(&self) -> Result<Outcome, Trouble> {
        let (name, source_set) = self.deployment()?;
        self.allow().await?;
        self.restore(name, source_set).await?;
        let set = self.new_set(name);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match self.replica_sets().delete(&set, &params).await {
            Err(error) if !not_found(&error) => {
                Err(kube_trouble("delete ReplicaSet", &set, &error))
            }
            _ => Ok(Outcome::Done),
        }
    }

    /// The template of the source's ReplicaSet again, and no pause.
    async fn restore(&self, name: &str, source_set: &str) -> Result<(), Trouble> {
        if let Some(mut deployment) = self.read::<Deployment>(name).await?
            && (self.has_pinned(&deployment)
                || deployment.annotations().get(PAUSED_BY) == Some(&self.uid()))
        {
            let now = &deployment.data["spec"]["template"];
            let before = self.read::<ReplicaSet>(source_set).await?.map(|set| template(&set));
            let unchanged =
                |before: &Value| same_template(&pinned(before, &self.host(), &self.uid()), now);
            // What somebody else has changed since stays.
            let restored = before.filter(unchanged).unwrap_or_else(|| unpinned(now));
            deployment.data["spec"]["template"] = restored;
            resume(&mut deployment);
            self.write(&deployment).await?;
        }
        Ok(())
    }

    /// The name of the ReplicaSet that pins a Deployment.
    fn new_set(&self, deployment: &str) -> String {
        set_name(deployment, &self.uid())
    }

    fn deployment(&self) -> Result<(&str, &str), Trouble> {
        match &self.plan()?.owner {
            Owner::Deployment { deployment, replica_set } => Ok((deployment, replica_set)),
            other => Err(Trouble {
                reason: "NoDeployment".to_owned(),
                message: format!("no Deployment to pin; the source's owner is {other:?}"),
                permanent: true,
            }),
        }
    }

    fn uid(&self) -> String {
        self.migration.uid().unwrap_or_default()
    }

    /// The target node's host name, by which the affinity finds it.
    fn host(&self) -> String {
        let node = self.plan().map(|plan| plan.target_node.clone()).unwrap_or_default();
        let found = self.cluster.node(&node);
        let label = found.as_ref().and_then(|found| found.labels().get(HOST_NAME));
        label.cloned().unwrap_or(node)
    }

    fn has_pinned(&self, deployment: &DynamicObject) -> bool {
        pinned_by(&deployment.data["spec"]["template"]) == Some(&self.uid())
    }

    fn replica_sets(&self) -> Api<DynamicObject> {
        api::<ReplicaSet>(&self.cluster.client, &self.namespace())
    }

    async fn read<K: Resource<DynamicType = ()>>(
        &self,
        name: &str,
    ) -> Result<Option<DynamicObject>, Trouble> {
        read::<K>(&self.cluster.client, &self.namespace(), name).await
    }

    /// Only as it was read: who has changed it since is not overwritten.
    async fn write(&self, deployment: &DynamicObject) -> Result<DynamicObject, Trouble> {
        let name = deployment.name_any();
        let api = api::<Deployment>(&self.cluster.client, &self.namespace());
        let written = api.replace(&name, &PostParams::default(), deployment).await;
        written.map_err(|error| kube_trouble("change the template of Deployment", &name, &error))
    }

    /// Why the Deployment must be left as it is, as it is now.
    async fn obstacle(
        &self,
        deployment: &DynamicObject,
        old: Option<&DynamicObject>,
        new: &Value,
    ) -> Result<Option<String>, Trouble> {
        let name = deployment.name_any();
        if let Some(why) = obstacle(&name, rollout(deployment, old)) {
            return Ok(Some(why));
        }
        let target = self.target().await?;
        if target.is_some_and(|target| target.labels().contains_key(OWNERS_LABEL)) {
            return Ok(Some(not_pinned(&name, "the pod has been handed over already")));
        }
        // A ReplicaSet whose template admission changes is not the Deployment's: it would make its own.
        let set = replica_set(deployment, new, &self.uid());
        let params = PostParams { dry_run: true, ..PostParams::default() };
        match self.replica_sets().create(&params, &set).await {
            Ok(made) if same_template(&template(&made), new) => Ok(None),
            Ok(_) => {
                let why = "the cluster's admission changes the templates of ReplicaSets";
                Ok(Some(not_pinned(&name, why)))
            }
            Err(error) => {
                let trouble = kube_trouble("try out ReplicaSet", &set.name_any(), &error);
                if !trouble.permanent {
                    return Err(trouble);
                }
                Ok(Some(not_pinned(&name, &trouble.message)))
            }
        }
    }

    /// All the source's labels, but the new template's digest.
    fn new_labels(&self, deployment: &DynamicObject) -> Result<Value, Trouble> {
        let source = self.cluster.pod(&self.namespace(), &self.plan()?.source_pod);
        let mut labels = match source {
            Some(source) => json!(labels_at_switch(&source)),
            None => deployment.data["spec"]["template"]["metadata"]["labels"].clone(),
        };
        labels[OWNERS_LABEL] = json!(hash(&self.uid()));
        Ok(labels)
    }

    async fn label(&self, labels: Value) -> Result<(), Trouble> {
        let plan = self.plan()?;
        let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
        match self.pods().patch(&plan.target_pod, &PatchParams::default(), &patch).await {
            Err(error) if !not_found(&error) => {
                Err(kube_trouble("label target pod", &plan.target_pod, &error))
            }
            _ => Ok(()),
        }
    }

    async fn target(&self) -> Result<Option<Pod>, Trouble> {
        let name = &self.plan()?.target_pod;
        let found = self.pods().get_opt(name).await;
        found.map_err(|error| kube_trouble("read target pod", name, &error))
    }

    async fn adoption(&self) -> Result<Adoption, Trouble> {
        let Some(target) = self.target().await? else { return Ok(Adoption::Never) };
        let phase = target.status.as_ref().and_then(|status| status.phase.as_deref());
        let ended = matches!(phase, Some("Failed" | "Succeeded"));
        if ended || target.metadata.deletion_timestamp.is_some() {
            return Ok(Adoption::Never);
        }
        let set = self.new_set(self.deployment()?.0);
        let owned = target.owner_references().iter().any(|owner| owner.name == set);
        Ok(if owned { Adoption::Done } else { Adoption::Waits })
    }

    /// Looks for what a controller does; what takes longer is looked for again.
    async fn until(&self, expected: Expected<'_>) -> Result<(), Trouble> {
        for _ in 0..LOOKS.1 {
            if self.is_so(expected).await? {
                return Ok(());
            }
            tokio::time::sleep(LOOKS.0).await;
        }
        let what = match expected {
            Expected::Observed(name) => format!("the controller of Deployment {name} to see it"),
            Expected::TakenOver(set) => format!("the Deployment to take over ReplicaSet {set}"),
            Expected::Adopted { by, .. } => format!("ReplicaSet {by} to adopt the target pod"),
            Expected::Emptied(set) => format!("ReplicaSet {set} to be scaled to 0"),
        };
        Err(wait(format!("waiting for {what}")))
    }

    async fn is_so(&self, expected: Expected<'_>) -> Result<bool, Trouble> {
        Ok(match expected {
            Expected::Observed(name) => {
                let found = self.read::<Deployment>(name).await?;
                found.is_none_or(|it| is_observed(&it))
            }
            Expected::TakenOver(set) => {
                let set = self.read::<ReplicaSet>(set).await?;
                set.is_some_and(|set| set.annotations().contains_key(REVISION))
            }
            Expected::Adopted { or_nobody, .. } => match self.adoption().await? {
                Adoption::Done => true,
                Adoption::Waits => false,
                Adoption::Never => or_nobody,
            },
            Expected::Emptied(set) => {
                let set = self.read::<ReplicaSet>(set).await?;
                set.is_none_or(|set| set.data["spec"]["replicas"] == 0)
            }
        })
    }
}

fn resume(deployment: &mut DynamicObject) {
    deployment.annotations_mut().remove(PAUSED_BY);
    if let Some(spec) = deployment.data["spec"].as_object_mut() {
        spec.remove("paused");
    }
}
