//! Writes every file that the machines find in place when they start.

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt, path::Path};

use crate::{
    error::{Context, Result},
    lab::BROKER_USER,
    pki::{self, Authority, Identity, Subject},
    plan::{self, API_SERVICE_IP, CONTROL, CONTROL_IP, Node},
    record::Record,
    render,
};

/// Writes the configuration of all machines and the administrator's kubeconfig.
pub(crate) fn write(record: &Record) -> Result<()> {
    let (places, nodes) = (record.places(), record.plan());
    let authority = Authority::new()?;
    control(&places.etc(CONTROL), &authority, &nodes, &record.password)?;
    for node in &nodes {
        worker(&places.etc(&node.name()), &authority, *node, &nodes)?;
    }
    let admin = client(&authority, "admin", Some("system:masters"))?;
    secret(
        &places.kubeconfig(),
        &render::kubeconfig(&authority.identity().certificate, "admin", &admin),
    )
}

fn control(etc: &Path, authority: &Authority, nodes: &[Node], password: &str) -> Result<()> {
    machine(etc, authority, nodes)?;
    let pki = etc.join("pki");
    secret(&pki.join("ca.key"), &authority.identity().key)?;
    let (private, public) = pki::service_account_keys()?;
    secret(&pki.join("service-account.key"), &private)?;
    file(&pki.join("service-account.pub"), &public)?;

    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", CONTROL];
    let mut names = names.map(str::to_owned).to_vec();
    names.push("kubernetes.default.svc.cluster.local".into());
    let server = authority.issue(&Subject {
        name: "kube-apiserver",
        group: None,
        dns: &names,
        ips: &[IpAddr::from(API_SERVICE_IP), IpAddr::from(CONTROL_IP)],
    })?;
    identity(&pki, "kube-apiserver", &server)?;
    let kubelet_client =
        client(authority, "kube-apiserver-kubelet-client", Some("system:masters"))?;
    identity(&pki, "kubelet-client", &kubelet_client)?;

    for program in ["kube-controller-manager", "kube-scheduler", "coredns", "kube-proxy"] {
        kubeconfig(etc, authority, program, &format!("system:{program}"), None)?;
    }
    if let Some(first) = nodes.first() {
        file(&etc.join("kube-proxy.yaml"), &render::kube_proxy(*first))?;
    }
    file(&etc.join("Corefile"), &render::corefile())?;

    let root = etc.join("root/etc");
    file(&root.join("rabbitmq/rabbitmq.conf"), &render::rabbitmq())?;
    file(
        &root.join("rabbitmq/enabled_plugins"),
        "[rabbitmq_consistent_hash_exchange,rabbitmq_management].\n",
    )?;
    file(
        &root.join("rabbitmq/definitions.json"),
        &render::rabbitmq_definitions(BROKER_USER, password),
    )?;
    file(&root.join("docker/registry/config.yml"), &render::registry())
}

fn worker(etc: &Path, authority: &Authority, node: Node, nodes: &[Node]) -> Result<()> {
    machine(etc, authority, nodes)?;
    let name = node.name();
    let user = format!("system:node:{name}");
    let serving = authority.issue(&Subject {
        name: &user,
        group: Some("system:nodes"),
        dns: std::slice::from_ref(&name),
        ips: &[IpAddr::from(node.ip())],
    })?;
    identity(&etc.join("pki"), "kubelet", &serving)?;
    kubeconfig(etc, authority, "kubelet", &user, Some("system:nodes"))?;
    kubeconfig(etc, authority, "kube-proxy", "system:kube-proxy", None)?;
    file(&etc.join("kubelet.yaml"), &render::kubelet(node))?;
    file(&etc.join("kube-proxy.yaml"), &render::kube_proxy(node))?;

    let root = etc.join("root/etc");
    file(&root.join("crio/crio.conf"), &render::crio())?;
    file(&root.join("cni/net.d/10-shadow-lab.conflist"), &render::cni(node))?;
    // Debian's crun doesn't know `crun.conf` yet; CRIU itself reads `default.conf`.
    for name in ["default.conf", "crun.conf", "runc.conf"] {
        file(&root.join("criu").join(name), render::CRIU)?;
    }
    Ok(())
}

/// What every machine has.
fn machine(etc: &Path, authority: &Authority, nodes: &[Node]) -> Result<()> {
    file(&etc.join("pki/ca.crt"), &authority.identity().certificate)?;
    let root = etc.join("root/etc");
    file(&root.join("hosts"), &plan::hosts(nodes))?;
    file(&root.join("resolv.conf"), &render::resolver())?;
    file(&root.join("containers/policy.json"), render::IMAGE_POLICY)?;
    file(&root.join("containers/registries.conf"), &render::registries())
}

fn client(authority: &Authority, name: &str, group: Option<&str>) -> Result<Identity> {
    authority.issue(&Subject { name, group, dns: &[], ips: &[] })
}

fn kubeconfig(
    etc: &Path,
    authority: &Authority,
    program: &str,
    user: &str,
    group: Option<&str>,
) -> Result<()> {
    let identity = client(authority, user, group)?;
    let text = render::kubeconfig(&authority.identity().certificate, user, &identity);
    secret(&etc.join(format!("{program}.kubeconfig")), &text)
}

fn identity(pki: &Path, name: &str, identity: &Identity) -> Result<()> {
    file(&pki.join(format!("{name}.crt")), &identity.certificate)?;
    secret(&pki.join(format!("{name}.key")), &identity.key)
}

fn file(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    }
    fs::write(path, text).context(|| format!("write {}", path.display()))
}

fn secret(path: &Path, text: &str) -> Result<()> {
    file(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .context(|| format!("protect {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_gets_its_files_and_keys_are_private() {
        let cache = tempfile::tempdir().unwrap();
        let record = Record {
            cache: cache.path().into(),
            nodes: 2,
            password: "p".into(),
            machines: Vec::new(),
            complete: false,
        };
        write(&record).unwrap();
        let places = record.places();
        for path in [
            places.etc("worker-2").join("kubelet.yaml"),
            places.etc("worker-2").join("root/etc/criu/default.conf"),
            places.etc(CONTROL).join("root/etc/rabbitmq/definitions.json"),
        ] {
            assert!(path.exists(), "{} is missing", path.display());
        }
        for path in [places.etc(CONTROL).join("pki/ca.key"), places.kubeconfig()] {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
}
