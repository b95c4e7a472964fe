//! The programs of the lab: which machine runs which, and with which arguments. Pure.

use crate::plan::{API_PORT, CONTROL_IP, Node, SERVICE_NETWORK};

const BIN: &str = "/opt/shadow-lab/bin";
const PKI: &str = "/etc/shadow-lab/pki";

/// One long-running program on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Component {
    /// What the lab calls it; also the name of its log.
    pub(crate) name: &'static str,
    /// The file name of the process that it becomes.
    pub(crate) process: &'static str,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
}

impl Component {
    fn new(name: &'static str, argv: &[String]) -> Self {
        Self { name, process: name, argv: argv.to_vec() }
    }
}

fn own(name: &'static str, arguments: &[&str]) -> Component {
    let argv: Vec<_> = std::iter::once(format!("{BIN}/{name}"))
        .chain(arguments.iter().map(|argument| (*argument).to_owned()))
        .collect();
    Component::new(name, &argv)
}

/// Everything on the control machine.
pub(crate) fn control() -> Vec<Component> {
    let mut all = foundations();
    all.extend([controller_manager(), scheduler(), dns(), kube_proxy()]);
    all
}

/// What on the control machine needs nobody else, in starting order. The rest are clients
/// of the API server that want its built-in roles to exist.
pub(crate) fn foundations() -> Vec<Component> {
    vec![rabbitmq(), registry(), etcd(), api_server()]
}

/// Everything on a node, in starting order.
pub(crate) fn node(node: Node) -> Vec<Component> {
    vec![own("crio", &["--config", "/etc/crio/crio.conf"]), kubelet(node), kube_proxy()]
}

fn rabbitmq() -> Component {
    // The `env` keeps Erlang's cookie where the package has it. Without NODENAME the
    // broker would ask DNS for its own host name.
    let argv = [
        "/usr/bin/env",
        "HOME=/var/lib/rabbitmq",
        "RABBITMQ_NODENAME=rabbit@localhost",
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
    ]
    .map(str::to_owned);
    Component { name: "rabbitmq", process: "beam.smp", argv: argv.to_vec() }
}

fn registry() -> Component {
    let argv =
        ["/usr/bin/docker-registry", "serve", "/etc/docker/registry/config.yml"].map(str::to_owned);
    Component { name: "registry", process: "docker-registry", argv: argv.to_vec() }
}

fn etcd() -> Component {
    // Its data is on a tmpfs and dies with the lab: syncing it would only cost time.
    own(
        "etcd",
        &[
            "--data-dir=/var/lib/etcd/data",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
    )
}

fn api_server() -> Component {
    own(
        "kube-apiserver",
        &[
            "--etcd-servers=http://127.0.0.1:2379",
            &format!("--advertise-address={CONTROL_IP}"),
            &format!("--secure-port={API_PORT}"),
            &format!("--tls-cert-file={PKI}/kube-apiserver.crt"),
            &format!("--tls-private-key-file={PKI}/kube-apiserver.key"),
            &format!("--client-ca-file={PKI}/ca.crt"),
            &format!("--kubelet-certificate-authority={PKI}/ca.crt"),
            &format!("--kubelet-client-certificate={PKI}/kubelet-client.crt"),
            &format!("--kubelet-client-key={PKI}/kubelet-client.key"),
            "--kubelet-preferred-address-types=InternalIP,Hostname",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            &format!("--service-account-signing-key-file={PKI}/service-account.key"),
            &format!("--service-account-key-file={PKI}/service-account.pub"),
            &format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        ],
    )
}

fn controller_manager() -> Component {
    let kubeconfig = "/etc/shadow-lab/kube-controller-manager.kubeconfig";
    own(
        "kube-controller-manager",
        &[
            &format!("--kubeconfig={kubeconfig}"),
            &format!("--authentication-kubeconfig={kubeconfig}"),
            &format!("--authorization-kubeconfig={kubeconfig}"),
            &format!("--service-account-private-key-file={PKI}/service-account.key"),
            &format!("--root-ca-file={PKI}/ca.crt"),
            &format!("--cluster-signing-cert-file={PKI}/ca.crt"),
            &format!("--cluster-signing-key-file={PKI}/ca.key"),
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
    )
}

fn scheduler() -> Component {
    let kubeconfig = "/etc/shadow-lab/kube-scheduler.kubeconfig";
    own(
        "kube-scheduler",
        &[
            &format!("--kubeconfig={kubeconfig}"),
            &format!("--authentication-kubeconfig={kubeconfig}"),
            &format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
    )
}

fn dns() -> Component {
    own("coredns", &["-conf", "/etc/shadow-lab/Corefile"])
}

fn kube_proxy() -> Component {
    own("kube-proxy", &["--config=/etc/shadow-lab/kube-proxy.yaml"])
}

fn kubelet(node: Node) -> Component {
    own(
        "kubelet",
        &[
            "--config=/etc/shadow-lab/kubelet.yaml",
            "--kubeconfig=/etc/shadow-lab/kubelet.kubeconfig",
            &format!("--hostname-override={}", node.name()),
            &format!("--node-ip={}", node.ip()),
        ],
    )
}
