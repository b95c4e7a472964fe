//! The lab's cluster: a client, manifests, waits with deadlines.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config, ResourceExt, discovery};
use serde_json::{Value, json};
use shadow_lab::Lab;

/// The node agents' manifest.
const AGENTS: &str = "config/daemonset/ms2m-agent.yaml";

const SHADOW: &str = "shadow/shadow";

/// Image of the operator and the transfer Job, as nodes name it.
pub fn operator_image() -> String {
    lab_image(SHADOW)
}

fn lab_image(name: &str) -> String {
    format!("{}/{name}:dev", shadow_lab::REGISTRY_NAME)
}

/// The running lab, seen from inside its network.
pub struct Cluster {
    /// The lab.
    pub lab: Lab,
    /// Its API server.
    pub client: Client,
}

impl Cluster {
    /// Connects as administrator.
    pub async fn connect() -> anyhow::Result<Self> {
        let lab = Lab::open()?;
        let kubeconfig = Kubeconfig::read_from(lab.kubeconfig())?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self { lab, client: Client::try_from(config)? })
    }

    /// Pods of the default namespace.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// What kubectl says, run as administrator in the repository with `input`; where it fails, the
    /// error has its words.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut kubectl = self.lab.kubectl()?;
        kubectl.args(arguments).current_dir(crate::root());
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().context("run kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", arguments.join(" "), words.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Applies all documents of a manifest of the repository, each changed by `edit` first.
    pub async fn apply(&self, file: &str, edit: impl Fn(&mut Value)) -> anyhow::Result<()> {
        self.apply_file(&crate::root().join(file), edit).await
    }

    async fn apply_file(&self, file: &Path, edit: impl Fn(&mut Value)) -> anyhow::Result<()> {
        for mut document in documents(file)? {
            edit(&mut document);
            let applied = self.apply_object(document).await;
            applied.with_context(|| format!("apply {}", file.display()))?;
        }
        Ok(())
    }

    /// Applies one object, server-side.
    pub async fn apply_object(&self, document: Value) -> anyhow::Result<()> {
        let object: DynamicObject = serde_json::from_value(document)?;
        let api = self.api_of(&object).await?;
        let params = PatchParams::apply("shadow-e2e").force();
        api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await?;
        Ok(())
    }

    /// Deletes all objects of a manifest; those that don't exist are fine.
    pub async fn delete(&self, file: &str) -> anyhow::Result<()> {
        for document in documents(&crate::root().join(file))? {
            let object: DynamicObject = serde_json::from_value(document)?;
            let api = self.api_of(&object).await?;
            match api.delete(&object.name_any(), &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => {
                    other.with_context(|| format!("delete {}", object.name_any()))?;
                }
            }
        }
        Ok(())
    }

    async fn api_of(&self, object: &DynamicObject) -> anyhow::Result<Api<DynamicObject>> {
        let types = object.types.as_ref().context("a manifest has no kind")?;
        let kind = GroupVersionKind::try_from(types)?;
        let (resource, capabilities) = discovery::pinned_kind(&self.client, &kind).await?;
        Ok(if capabilities.scope == discovery::Scope::Cluster {
            Api::all_with(self.client.clone(), &resource)
        } else {
            let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
            Api::namespaced_with(self.client.clone(), &namespace, &resource)
        })
    }

    /// Installs the CRD, the rights and the operator from `config/`, and waits until it is ready.
    pub async fn install_operator(&self) -> anyhow::Result<()> {
        self.install_operator_of(SHADOW, &[]).await
    }

    /// As [`Cluster::install_operator`], from another image and with these variables.
    pub async fn install_operator_of(
        &self,
        image: &str,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        self.install_operator_from(&crate::root(), image, variables).await
    }

    /// As [`Cluster::install_operator_of`], as another checkout's `config/` has it.
    pub async fn install_operator_from(
        &self,
        root: &Path,
        image: &str,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let file = |path: &str| root.join("config").join(path);
        let crd = "crd/bases/migration.ms2m.io_statefulmigrations.yaml";
        self.apply_file(&file(crd), |_| {}).await?;
        self.apply_file(&file("rbac/role.yaml"), |_| {}).await?;
        let edit = |document: &mut Value| {
            use_lab_image(document);
            let container = document.pointer_mut("/spec/template/spec/containers/0");
            let Some(container) = container else { return };
            container["image"] = json!(lab_image(image));
            for (name, value) in variables {
                set_env(container, name, value);
            }
        };
        let manager = file("manager/manager.yaml");
        if std::fs::read_to_string(&manager)?.contains("type: Recreate") {
            self.leave_rolling_updates().await?;
        }
        self.apply_file(&manager, edit).await?;
        // The tag is the same after a rebuild: the pod has to be a new one.
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "ms2m-system");
        pods.delete_collection(&DeleteParams::default().grace_period(1), &ListParams::default())
            .await?;
        self.wait_deployment("ms2m-system", "shadow-operator").await
    }

    /// Back to a version that is recreated: the API server has filled in how it is rolled, and nobody's manifest
    /// takes that out again.
    async fn leave_rolling_updates(&self) -> anyhow::Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), "ms2m-system");
        let strategy = json!({ "type": "Recreate", "rollingUpdate": null });
        let patch = Patch::Merge(json!({ "spec": { "strategy": strategy } }));
        if deployments.get_opt("shadow-operator").await?.is_some() {
            deployments.patch("shadow-operator", &PatchParams::default(), &patch).await?;
        }
        Ok(())
    }

    /// Installs the node agents from `config/`, on these nodes only, and waits until they are ready. The
    /// operator has to be there: it issues their certificate.
    pub async fn install_agents(&self, nodes: &[String]) -> anyhow::Result<()> {
        // A term names one node; one of the terms has to fit.
        let term = |node: &String| {
            json!({ "matchFields": [{
                "key": "metadata.name", "operator": "In", "values": [node]
            }] })
        };
        let terms: Vec<Value> = nodes.iter().map(term).collect();
        let on_these = json!({ "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms }
        } });
        let place = |document: &mut Value| {
            use_lab_image(document);
            if document["kind"] == "DaemonSet" {
                document["spec"]["template"]["spec"]["affinity"] = on_these.clone();
            }
        };
        self.apply(AGENTS, place).await?;
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), "ms2m-system");
        wait_for("the node agents to be ready", Duration::from_mins(2), async || {
            let found = api.get("ms2m-agent").await?;
            let status = found.status.unwrap_or_default();
            let all = i32::try_from(nodes.len())?;
            let ready = status.number_ready == all
                && status.desired_number_scheduled == all
                && status.current_number_scheduled == all
                && status.updated_number_scheduled == Some(all)
                && status.observed_generation == found.metadata.generation;
            Ok(ready.then_some(()))
        })
        .await
    }

    /// Removes the node agents, and waits until they are gone.
    pub async fn remove_agents(&self) -> anyhow::Result<()> {
        self.delete(AGENTS).await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "ms2m-system");
        let agents = ListParams::default().labels("app.kubernetes.io/name=ms2m-agent");
        wait_for("the node agents to be gone", Duration::from_mins(1), async || {
            Ok(pods.list(&agents).await?.items.is_empty().then_some(()))
        })
        .await
    }

    /// Waits until a Deployment has all its replicas ready and no others.
    pub async fn wait_deployment(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("Deployment {namespace}/{name} to be ready");
        wait_for(&what, Duration::from_secs(90), async || {
            let found = api.get(name).await?;
            let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let status = found.status.unwrap_or_default();
            let ready = status.ready_replicas.unwrap_or(0) == wanted
                && status.replicas.unwrap_or(0) == wanted
                && status.observed_generation == found.metadata.generation;
            Ok(ready.then_some(()))
        })
        .await
    }

    /// Pods that carry the label `app=<app>` and aren't being deleted.
    pub async fn pods_of(&self, app: &str) -> anyhow::Result<Vec<Pod>> {
        let list = self.pods().list(&ListParams::default().labels(&format!("app={app}"))).await?;
        Ok(list.items.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect())
    }

    /// The one pod of `app`.
    pub async fn pod_of(&self, app: &str) -> anyhow::Result<Pod> {
        let mut pods = self.pods_of(app).await?;
        match (pods.pop(), pods.len()) {
            (Some(pod), 0) => Ok(pod),
            (_, others) => bail!("{} pods of app {app}, expected one", others + 1),
        }
    }

    /// Kills the first container's process in a pod from its node.
    pub fn kill_container(&self, pod: &Pod, node: &str) -> anyhow::Result<()> {
        let statuses = pod.status.as_ref().and_then(|it| it.container_statuses.as_ref());
        let id = statuses.and_then(|list| list.first()?.container_id.as_deref());
        let id = id.with_context(|| format!("pod {} runs no container", pod.name_any()))?;
        let id = id.trim_start_matches("cri-o://");
        self.lab.exec(node, &["crun", "--root", "/run/crun", "kill", id, "KILL"])?;
        Ok(())
    }

    /// `http://<address of the pod>:8080`.
    pub fn url(pod: &Pod) -> anyhow::Result<String> {
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        Ok(format!("http://{}:8080", ip.with_context(|| format!("{} has no IP", pod.name_any()))?))
    }
}

fn use_lab_image(document: &mut Value) {
    let image = operator_image();
    let Some(containers) = document.pointer_mut("/spec/template/spec/containers") else { return };
    for container in containers.as_array_mut().into_iter().flatten() {
        container["image"] = json!(image);
        container["imagePullPolicy"] = json!("Always");
        set_env(container, "SHADOW_TRANSFER_IMAGE", &image);
    }
}

/// Sets a variable of a container.
pub fn set_env(container: &mut Value, name: &str, value: &str) {
    if container.get("env").is_none() {
        container["env"] = json!([]);
    }
    let Some(list) = container["env"].as_array_mut() else { return };
    list.retain(|variable| variable["name"] != name);
    list.push(json!({ "name": name, "value": value }));
}

/// The documents of a manifest.
pub fn documents(file: &Path) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
        .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Asks again and again until there is an answer; fails with what it waited for. An error counts
/// as no answer and is told at the end.
pub async fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        let answer = ask().await;
        if let Ok(Some(answer)) = answer {
            return Ok(answer);
        }
        if begun.elapsed() > patience {
            let error = answer.err().map(|e| format!(": {e:#}")).unwrap_or_default();
            bail!("waited {} s for {what}{error}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
