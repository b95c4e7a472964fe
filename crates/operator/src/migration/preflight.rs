//! What only the preflight asks, before anything is touched: the registry, the StatefulSet, the volumes,
//! and the API server whether it would take the copy.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use shadow_protocol::observation::{self, Owner, Preflight, Trouble};
use shadow_protocol::pending::target_name;
use shadow_protocol::phase::Plan;
use shadow_protocol::spec::{Spec, Strategy, Transfer};

use super::Migration;
use crate::act::{exists, kube_trouble};
use crate::observe::{self, chain, words_of};
use crate::registry::Unusable;
use crate::target_pod::{TargetPlan, target_pod};
use crate::{agents, pin, scale, secret, usage, volumes};

/// The source as the API server has it, and in the protocol's terms.
type Source<'a> = (&'a Pod, &'a observation::Pod);

impl Migration {
    /// Before there is a `plan` all of it; later only the queue's survey counts.
    pub(super) async fn preflight(
        &mut self,
        spec: &Spec,
        plan: Option<&Plan>,
        source: Option<Source<'_>>,
        name_taken: bool,
    ) -> Preflight {
        let mut found = Preflight {
            nodes: self.nodes(spec, source.map(|(pod, _)| pod)),
            name_taken,
            registry: None,
            survey: self.memory.survey.clone(),
            set: None,
            rollout: None,
            claims: None,
            copy: None,
            checks: None,
            memory_bytes: None,
            unready_siblings: 0,
        };
        self.add_problems(&mut found.nodes);
        if plan.is_none()
            && let Err(trouble) = self.look_ahead(spec, source, &mut found).await
        {
            self.memory.fail(trouble);
        }
        found
    }

    /// Direct needs an agent that takes the checkpoint in.
    fn nodes(&self, spec: &Spec, source: Option<&Pod>) -> Vec<observation::Node> {
        let cluster = &self.context.cluster;
        let mut nodes = observe::nodes(cluster, source);
        let lacks =
            |name: &str| self.context.agents.is_none() || agents::address(cluster, name).is_none();
        for node in nodes.iter_mut().filter(|_| spec.transfer == Transfer::Direct) {
            if lacks(&node.name) {
                node.problems.push(format!(
                    "no ready ms2m-agent is on node {}, which transferMode Direct needs: install \
                     config/daemonset/ms2m-agent.yaml, or see why its pod there is not ready",
                    node.name
                ));
            }
        }
        nodes
    }

    /// What has an answer is not asked again.
    async fn look_ahead(
        &mut self,
        spec: &Spec,
        source: Option<Source<'_>>,
        found: &mut Preflight,
    ) -> Result<(), Trouble> {
        let source = source.filter(|(_, seen)| seen.running);
        if let Some((pod, seen)) = source {
            self.look_at_volumes(pod, found).await?;
            self.choose(spec, pod, &mut found.nodes);
            if seen.problems.is_empty() {
                self.look(spec, pod, found);
            }
        }
        self.ask_others(spec, source, found).await
    }

    async fn look_at_volumes(&mut self, pod: &Pod, found: &mut Preflight) -> Result<(), Trouble> {
        let client = &self.context.cluster.client;
        if self.memory.volumes.is_none() {
            self.memory.volumes = Some(volumes::of(client, pod).await?);
        }
        for volume in self.memory.volumes.iter().flatten() {
            found.claims.get_or_insert_default().push(volume.claim());
            for node in &mut found.nodes {
                let at = self.context.cluster.node(&node.name);
                node.problems.extend(at.and_then(|at| volume.problem_at(&at)));
            }
        }
        found.claims.get_or_insert_default();
        if self.memory.usage.is_none() {
            self.memory.usage = Some(usage::of(client, pod).await);
        }
        Ok(())
    }

    async fn ask_others(
        &mut self,
        spec: &Spec,
        source: Option<Source<'_>>,
        found: &mut Preflight,
    ) -> Result<(), Trouble> {
        if !matches!(self.memory.registry, Some(Ok(())))
            && spec.transfer == Transfer::Registry
            && let Some(repository) = &spec.repository
        {
            self.memory.registry = Some(self.ask_registry(repository).await?);
        }
        found.registry.clone_from(&self.memory.registry);
        let Some((pod, seen)) = source else { return Ok(()) };
        let client = &self.context.cluster.client;
        if let Owner::StatefulSet(name) = &seen.owner {
            found.set =
                scale::pods_of_set(client, &pod.namespace().unwrap_or_default(), name).await?;
        }
        let container = spec.container.as_ref().or(seen.containers.first());
        let usage = self.memory.usage.as_ref();
        found.memory_bytes = usage.zip(container).and_then(|(usage, name)| usage.memory(name));
        if let Owner::Deployment { deployment, replica_set } = &seen.owner {
            let namespace = pod.namespace().unwrap_or_default();
            found.rollout = pin::rollout_of(client, &namespace, deployment, replica_set).await?;
        }
        if !matches!(self.memory.copy, Some(Ok(()))) {
            self.memory.copy = Some(self.try_out(spec, pod, seen).await?);
        }
        found.copy.clone_from(&self.memory.copy);
        Ok(())
    }

    /// Asks the API server for a copy of the source of which nothing is kept.
    async fn try_out(
        &self,
        spec: &Spec,
        source: &Pod,
        seen: &observation::Pod,
    ) -> Result<Result<(), String>, Trouble> {
        let container = spec.container.as_ref().or(seen.containers.first());
        let Some((container, status)) = container.and_then(|it| seen.statuses.get_key_value(it))
        else {
            return Ok(Ok(()));
        };
        let name = target_name(seen.called(&spec.source_pod));
        let node = spec.target_node.as_ref().or(seen.node.as_ref());
        let copy = target_pod(
            source,
            &TargetPlan {
                migration: &self.object,
                name: &name,
                container,
                image: &status.image,
                transfer: spec.transfer,
                base_image: &status.image,
                node: node.map_or("", String::as_str),
                beside: None,
                replaced_by_owner: matches!(seen.owner, Owner::Deployment { .. }),
            },
        );
        let namespace = source.namespace().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.context.cluster.client.clone(), &namespace);
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let makes_room = matches!(seen.owner, Owner::StatefulSet(_))
            && spec.strategy != Some(Strategy::ShadowPod);
        match pods.create(&params, &copy).await {
            Ok(made) => Ok(missing_mount(source, &made).map_or(Ok(()), Err)),
            // Said elsewhere.
            Err(error) if exists(&error) => Ok(Ok(())),
            Err(kube::Error::Api(status)) if says_nothing(&status.message, makes_room) => {
                Ok(Ok(()))
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
                Ok(Err(words_of(&status)))
            }
            Err(error) => Err(kube_trouble("try out a copy of pod", &spec.source_pod, &error)),
        }
    }

    /// Whether the registry takes what the transfer Job will send, with the credentials that the Job
    /// will have. A refusal is this step's trouble: no later answer would be another.
    async fn ask_registry(&self, repository: &str) -> Result<Result<(), String>, Trouble> {
        let trouble = |reason: &str, message: String, permanent| Trouble {
            reason: reason.to_owned(),
            message,
            permanent,
        };
        let namespace = self.object.namespace().unwrap_or_default();
        let secret = self.context.options.registry_secret.as_deref();
        let mut auth = None;
        let mut whose = "the operator was started without --registry-secret".to_owned();
        if let Some(secret) = secret {
            let client = &self.context.cluster.client;
            let key = ".dockerconfigjson";
            whose =
                format!("Secret {namespace}/{secret}, named by the operator's --registry-secret");
            let found = secret::text(client, &namespace, secret, key).await;
            auth = Some(found.map_err(|error| {
                let passing = error.is_passing();
                let reason = if passing { "ApiUnavailable" } else { "RegistrySecretInvalid" };
                trouble(reason, format!("{whose}, key {key}: {}", chain(&error)), !passing)
            })?);
        }
        match self.context.registry.check(repository, auth.as_deref()).await {
            Ok(()) => Ok(Ok(())),
            Err(Unusable::Unreachable(why)) => Ok(Err(why)),
            Err(Unusable::Refused(why)) => {
                let what = format!("checkpointImageRepository {repository} can't be pushed to");
                Err(trouble("RegistryRefused", format!("{what}: {why} ({whose})"), true))
            }
        }
    }
}

/// A quota that is full has room for a copy once its source is gone; a webhook that can't be tried out
/// is asked when it counts.
fn says_nothing(message: &str, makes_room: bool) -> bool {
    makes_room && message.contains("exceeded quota") || message.contains("does not support dry run")
}

/// A restored process finds every file where it was: admission must not take a mount away.
fn missing_mount(source: &Pod, copy: &Pod) -> Option<String> {
    let containers = |pod: &Pod| pod.spec.clone().unwrap_or_default().containers;
    let there = containers(copy);
    let mounts = |container: &Container| container.volume_mounts.clone().unwrap_or_default();
    for container in containers(source) {
        let same = there.iter().find(|it| it.name == container.name);
        let kept: Vec<_> = same.map(mounts).unwrap_or_default();
        let lacks = |path: &String| !kept.iter().any(|mount| mount.mount_path == *path);
        let mut paths = mounts(&container).into_iter().map(|mount| mount.mount_path);
        if let Some(path) = paths.find(lacks) {
            let name = &container.name;
            return Some(format!(
                "the cluster's admission would take mount {path} away from container {name}"
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(paths: &[&str]) -> Pod {
        let mounts: Vec<_> =
            paths.iter().map(|path| json!({ "name": "v", "mountPath": path })).collect();
        let container = json!({ "name": "app", "volumeMounts": mounts });
        serde_json::from_value(json!({ "spec": { "containers": [container] } })).unwrap()
    }

    #[test]
    fn a_mount_that_is_taken_away_is_named() {
        let source = pod(&["/a", "/b"]);
        assert_eq!(missing_mount(&source, &pod(&["/c", "/b", "/a"])), None);
        assert!(missing_mount(&source, &pod(&["/a"])).is_some_and(|why| why.contains("/b")));
    }

    #[test]
    fn a_full_quota_is_in_the_way_of_two_copies_only() {
        let full = "pods \"a\" is forbidden: exceeded quota: small, requested: pods=1";
        assert!(says_nothing(full, true));
        assert!(!says_nothing(full, false));
        assert!(!says_nothing("violates PodSecurity \"restricted\"", true));
    }
}
