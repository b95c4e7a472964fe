//! `shadow doctor` on real nodes: those of the lab pass, and one that can't restore does not.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use shadow_broker::rabbitmq::RabbitMq;
use shadow_checkpoint::registry::digest;
use shadow_checkpoint::{Client, ImageRef};
use shadow_doctor::finding::{Finding, Verdict};
use shadow_doctor::gather::{BrokerAt, Options, PodName, RegistryAt, Url, facts};
use shadow_doctor::{checks, print};
use shadow_e2e::cluster::{Cluster, operator_image};
use shadow_e2e::in_lab;
use shadow_e2e::workload::Workload;

use crate::runtime::{WithoutCriu, wait_for_runtime};
use crate::{alone, deployed, with_operator};

/// The image as it is now: a node may have an older one by its tag.
async fn image(cluster: &Cluster) -> anyhow::Result<String> {
    let named: ImageRef = operator_image().parse()?;
    let registry = cluster.lab.registry();
    let pushed = ImageRef { host: registry.clone(), ..named.clone() };
    let client = Client::connect(&registry, None, false).await?;
    let manifest = client.manifest(&pushed).await?;
    let manifest = manifest.with_context(|| format!("{pushed} is not in the lab's registry"))?;
    Ok(named.at(&digest(&manifest)).to_string())
}

/// What doctor finds, printed; its pods are gone.
async fn examine(cluster: &Cluster, options: Options) -> anyhow::Result<Vec<Finding>> {
    let options = Options { probe_image: Some(image(cluster).await?), ..options };
    let connector = RabbitMq::default();
    let stop = std::future::pending();
    let found = Box::pin(facts(&cluster.client, &connector, &options, stop)).await?;
    let findings = checks::all(&found);
    println!("{}", print::text(&findings));
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "ms2m-system");
    let ours = ListParams::default().labels("app.kubernetes.io/name=shadow-doctor");
    let left: Vec<Pod> = pods.list(&ours).await?.items;
    let left: Vec<&Pod> =
        left.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    ensure!(left.is_empty(), "doctor's pods are deleted, but {} are left", left.len());
    Ok(findings)
}

/// Those that are neither good nor only good to know.
fn bad(findings: &[Finding]) -> Vec<&Finding> {
    let good = |finding: &&Finding| matches!(finding.verdict, Verdict::Ok | Verdict::Note);
    findings.iter().filter(|finding| !good(finding)).collect()
}

#[test]
fn the_labs_nodes_operator_broker_and_registry_pass() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = with_operator().await?;
        let broker = cluster.lab.rabbitmq();
        let (user, password) = (&broker.user, &broker.password);
        let url = format!("amqp://{user}:{password}@{}:{}/%2f", broker.host, broker.amqp_port);
        let options = Options {
            broker: Some(BrokerAt { url: Url::Given(url), management_url: None, queue: None }),
            registry: Some(RegistryAt {
                repository: format!("{}/checkpoints", cluster.lab.registry()),
                auth: None,
            }),
            ..Options::default()
        };
        let findings = examine(&cluster, options).await?;
        ensure!(bad(&findings).is_empty(), "all pass, but {:#?}", bad(&findings));
        for node in cluster.lab.nodes() {
            let subject = format!("node {node}");
            for check in ["restore", "criu-check", "criu-options", "crun", "cpu-features"] {
                let passed = findings.iter().any(|it| {
                    it.subject == subject && it.check == check && it.verdict == Verdict::Ok
                });
                ensure!(passed, "{check} of {subject} is looked at");
            }
        }
        Ok(())
    })
}

#[test]
fn a_consumers_processes_are_looked_at() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { probe: false, ..Workload::default() }).await?;
        let name = cluster.pod_of("consumer").await?.name_any();
        let namespace = Some("default".to_owned());
        let pod = PodName { namespace, name, container: None };
        let findings = examine(&cluster, Options { pod: Some(pod), ..Options::default() }).await?;
        let failures: Vec<&Finding> =
            findings.iter().filter(|it| it.verdict == Verdict::Failure).collect();
        ensure!(failures.is_empty(), "it can be moved, but {failures:#?}");
        let said = |check: &str| {
            let found = findings.iter().find(|it| it.check == check);
            found.map(|it| it.reason.clone()).with_context(|| format!("nothing is said of {check}"))
        };
        let tcp = said("tcp")?;
        ensure!(tcp.contains("closed in the copy"), "its connection to the broker is seen: {tcp}");
        let freeze = said("freeze")?;
        ensure!(freeze.contains("stops it for about"), "its freeze is predicted: {freeze}");
        Ok(())
    })
}

#[test]
fn a_node_whose_runtime_has_no_criu_fails_by_name() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = with_operator().await?;
        let node = cluster.lab.nodes().pop().context("the lab has nodes")?;
        let without = WithoutCriu::on(&cluster.lab, &node)?;
        wait_for_runtime(&cluster, &node).await?;
        let findings = examine(&cluster, Options::default()).await;
        drop(without);
        wait_for_runtime(&cluster, &node).await?;
        let findings = findings?;
        ensure!(!print::passes(&findings), "a failure is one");
        let failed: Vec<(&str, &str)> =
            bad(&findings).iter().map(|it| (it.subject.as_str(), it.check)).collect();
        let expected = format!("node {node}");
        let expected = ["checkpoint", "restore"].map(|check| (expected.as_str(), check));
        ensure!(failed == expected, "and nothing else: {failed:?}");
        Ok(())
    })
}
