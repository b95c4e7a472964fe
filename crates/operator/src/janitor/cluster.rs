//! Looks for what is left in the cluster, and removes it.

use std::fmt::Debug;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Preconditions, PropagationPolicy};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use shadow_api::LABEL_MIGRATION;

use super::Janitor;
use super::left::{Chore, Found, What, chores};
use crate::act::{SHORTEST_GRACE, not_found};
use crate::admission::let_go;
use crate::clock;
use crate::observe::chain;

impl Janitor {
    pub(super) async fn tidy_cluster(&mut self) -> Result<(), kube::Error> {
        let found = self.found().await?;
        // Later, so that none of the migrations that have made it is unknown.
        let living = self.living().await?;
        let (chores, notices) = chores(&found, &living, clock::now());
        for Chore { what, object } in chores {
            let (namespace, name) = (object.namespace.clone(), object.name.clone());
            match self.remove(what, &object).await {
                Ok(()) => tracing::info!(?what, namespace, name, "left of a migration: removed"),
                Err(why) => tracing::warn!(?what, namespace, name, why, "can't be removed"),
            }
        }
        for notice in notices {
            self.say(notice.reason, notice.message, Some(&notice.about)).await;
        }
        Ok(())
    }

    async fn found(&mut self) -> Result<Found, kube::Error> {
        let cluster = &self.context.cluster;
        let client = &cluster.client;
        Ok(Found {
            policies: ours::<ValidatingAdmissionPolicy>(client).await?,
            bindings: ours::<ValidatingAdmissionPolicyBinding>(client).await?,
            templates: ours::<PodTemplate>(client).await?,
            jobs: cluster.jobs.state().iter().map(|job| job.metadata.clone()).collect(),
            deployments: listed::<Deployment>(client, &ListParams::default()).await?,
            pods: cluster.pods.state(),
        })
    }

    async fn remove(&self, what: What, object: &ObjectMeta) -> Result<(), String> {
        let client = &self.context.cluster.client;
        match what {
            What::Binding => {
                deleted(Api::<ValidatingAdmissionPolicyBinding>::all(client.clone()), object, None)
                    .await
            }
            What::Policy => {
                deleted(Api::<ValidatingAdmissionPolicy>::all(client.clone()), object, None).await
            }
            What::Template => {
                let api = namespaced::<PodTemplate>(client, object);
                let name = object.name.as_deref().unwrap_or_default();
                let found = api.get_opt(name).await.map_err(|error| chain(&error))?;
                let Some(found) = found.filter(|it| it.metadata.uid == object.uid) else {
                    return Ok(());
                };
                let_go(&api, "PodTemplate", &found).await.map_err(|trouble| trouble.message)?;
                deleted(api, object, None).await
            }
            What::Job => deleted(namespaced::<Job>(client, object), object, None).await,
            What::Pod => {
                let api = namespaced::<Pod>(client, object);
                deleted(api, object, Some(SHORTEST_GRACE)).await
            }
            What::HeldPod => {
                let pod = Pod { metadata: object.clone(), ..Pod::default() };
                let api = namespaced::<Pod>(client, object);
                let_go(&api, "pod", &pod).await.map_err(|trouble| trouble.message)
            }
        }
    }
}

fn namespaced<K>(client: &Client, object: &ObjectMeta) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), object.namespace.as_deref().unwrap_or_default())
}

async fn ours<K>(client: &Client) -> Result<Vec<ObjectMeta>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    listed::<K>(client, &ListParams::default().labels(LABEL_MIGRATION)).await
}

/// All of a kind, which the API server may not know.
async fn listed<K>(client: &Client, params: &ListParams) -> Result<Vec<ObjectMeta>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match Api::<K>::all(client.clone()).list_metadata(params).await {
        Ok(list) => Ok(list.items.into_iter().map(|it| it.metadata).collect()),
        Err(error) if not_found(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Exactly this object; it may have gone by itself.
async fn deleted<K>(api: Api<K>, object: &ObjectMeta, grace: Option<u32>) -> Result<(), String>
where
    K: Clone + DeserializeOwned + Debug,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: object.uid.clone(), resource_version: None }),
        propagation_policy: Some(PropagationPolicy::Background),
        grace_period_seconds: grace,
        ..DeleteParams::default()
    };
    match api.delete(object.name.as_deref().unwrap_or_default(), &params).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(chain(&error)),
        Ok(_) => Ok(()),
    }
}
