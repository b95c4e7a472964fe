//! Configuration files of the lab's programs. Pure: values in, text out.

use serde_json::json;

use crate::{
    cgroup::Layout,
    pki::Identity,
    plan::{
        AMQP_PORT, API_PORT, CONTROL_IP, DNS_SERVICE_IP, MANAGEMENT_PORT, Node, POD_NETWORK,
        REGISTRY_NAME, REGISTRY_PORT,
    },
};

/// The pause image, pushed by `lab up`.
pub(crate) fn pause_image() -> String {
    format!("{REGISTRY_NAME}/shadow-lab/pause:1")
}

/// CRI-O: crun by default, checkpoints on. No `signature_policy`, or CRI-O refuses to
/// restore.
pub(crate) fn crio() -> String {
    format!(
        r#"[crio]
root = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
storage_driver = "overlay"

[crio.api]
listen = "/run/crio/crio.sock"

[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
default_runtime = "crun"
drop_infra_ctr = true
enable_criu_support = true
pinns_path = "/opt/shadow-lab/bin/pinns"

[crio.runtime.runtimes.crun]
runtime_path = "/usr/bin/crun"
runtime_root = "/run/crun"
monitor_path = "/usr/bin/conmon"

[crio.runtime.runtimes.runc]
runtime_path = "/usr/sbin/runc"
runtime_root = "/run/runc"
monitor_path = "/usr/bin/conmon"

[crio.image]
pause_image = "{pause}"

[crio.network]
network_dir = "/etc/cni/net.d/"
plugin_dirs = ["/usr/lib/cni"]
"#,
        pause = pause_image()
    )
}

/// What CRIU does for every runtime. Connections are closed in the copy, so nothing has to
/// stop their packets during the dump: with CRIU's usual lock a client that connects then
/// loses its SYN and waits a second for the next. One that waits in the listen backlog
/// does not fail the dump.
pub(crate) const CRIU: &str = "tcp-close\nskip-in-flight\nnetwork-lock skip\n";

/// Which images may be pulled: all.
pub(crate) const IMAGE_POLICY: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

/// The lab's registry speaks plain HTTP, under its Service name and its address.
pub(crate) fn registries() -> String {
    [REGISTRY_NAME.to_owned(), format!("{CONTROL_IP}:{REGISTRY_PORT}")].iter().fold(
        String::from("unqualified-search-registries = []\n"),
        |text, location| {
            text + &format!("\n[[registry]]\nlocation = \"{location}\"\ninsecure = true\n")
        },
    )
}

/// Pods get a cable to their node and routed addresses; no masquerading, because the
/// broker knows consumers by their address.
pub(crate) fn cni(node: Node) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "shadow-lab",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": node.pod_network() }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
    .to_string()
}

/// The kubelet of one node.
pub(crate) fn kubelet(node: Node) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": "/etc/shadow-lab/pki/ca.crt" },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": Layout::pods_root(&node.name()),
        "cgroupsPerQOS": false,
        "clusterDNS": [DNS_SERVICE_IP],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/crio/crio.sock",
        "enforceNodeAllocatable": [],
        // The host's disk is the user's; the lab doesn't evict because it is filling up.
        "evictionHard": { "memory.available": "100Mi" },
        "failCgroupV1": false,
        "failSwapOn": false,
        "featureGates": { "ContainerCheckpoint": true },
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        "readOnlyPort": 0,
        "serializeImagePulls": false,
        "tlsCertFile": "/etc/shadow-lab/pki/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/shadow-lab/pki/kubelet.key",
    })
    .to_string()
}

/// kube-proxy. On the control machine it speaks as `node`, having none of its own: all
/// that changes is which endpoints count as local.
pub(crate) fn kube_proxy(node: Node) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": "/etc/shadow-lab/kube-proxy.kubeconfig" },
        "clusterCIDR": POD_NETWORK,
        // Limits of the whole host, which are not the lab's to set.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "detectLocalMode": "ClusterCIDR",
        "hostnameOverride": node.name(),
        "mode": "nftables",
        // By default a change of endpoints may take a second to reach the rules.
        "nftables": { "minSyncPeriod": "100ms" },
    })
    .to_string()
}

/// A kubeconfig with everything inline.
pub(crate) fn kubeconfig(authority: &str, user: &str, identity: &Identity) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "shadow-lab",
            "cluster": {
                "server": format!("https://{CONTROL_IP}:{API_PORT}"),
                "certificate-authority-data": base64(authority),
            },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": base64(&identity.certificate),
                "client-key-data": base64(&identity.key),
            },
        }],
        "contexts": [{
            "name": "shadow-lab",
            "context": { "cluster": "shadow-lab", "user": user, "namespace": "default" },
        }],
        "current-context": "shadow-lab",
    })
    .to_string()
}

/// The configuration of cluster DNS.
pub(crate) fn corefile() -> String {
    format!(
        "\
.:53 {{
    errors
    bind {CONTROL_IP}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig /etc/shadow-lab/coredns.kubeconfig shadow-lab
        ttl 5
    }}
    cache 5
}}
"
    )
}

/// The resolver of the machines themselves.
pub(crate) fn resolver() -> String {
    format!("nameserver {CONTROL_IP}\nsearch svc.cluster.local cluster.local\n")
}

/// RabbitMQ. Statistics keep their default interval: what the protocol has to live with.
pub(crate) fn rabbitmq() -> String {
    format!(
        "loopback_users = none\n\
         listeners.tcp.default = {AMQP_PORT}\n\
         management.tcp.port = {MANAGEMENT_PORT}\n\
         definitions.import_backend = local_filesystem\n\
         definitions.local.path = /etc/rabbitmq/definitions.json\n\
         log.console = true\n\
         log.file = false\n"
    )
}

/// RabbitMQ's users: the lab's own, and `guest`, which a broker URL without credentials
/// means.
pub(crate) fn rabbitmq_definitions(user: &str, password: &str) -> String {
    let users = [(user, password), ("guest", "guest")];
    let accounts = users.map(
        |(name, password)| json!({ "name": name, "password": password, "tags": ["administrator"] }),
    );
    let permissions = users.map(|(user, _)| {
        json!({ "user": user, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*" })
    });
    json!({ "vhosts": [{ "name": "/" }], "users": accounts, "permissions": permissions })
        .to_string()
}

/// The registry.
pub(crate) fn registry() -> String {
    format!(
        "version: 0.1\n\
         log: {{ accesslog: {{ disabled: true }}, level: warn }}\n\
         storage:\n  filesystem: {{ rootdirectory: /var/lib/docker-registry }}\n  \
         delete: {{ enabled: true }}\n\
         http: {{ addr: \":{REGISTRY_PORT}\" }}\n"
    )
}

/// What the cluster itself holds: names for what runs beside it, and the rights of cluster DNS.
pub(crate) fn cluster() -> String {
    let service = |namespace: &str, name: &str, cluster_ip: Option<_>, ports: &[Port]| {
        let ports_of = |with_target: bool| -> Vec<_> {
            ports
                .iter()
                .map(|port| {
                    let mut value = json!({
                        "name": port.name, "port": port.number, "protocol": port.protocol,
                    });
                    if with_target {
                        value["targetPort"] = json!(port.number);
                    }
                    value
                })
                .collect()
        };
        [
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": name, "namespace": namespace },
                "spec": { "clusterIP": cluster_ip, "ports": ports_of(true) },
            }),
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-lab"),
                    "namespace": namespace,
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": "IPv4",
                "ports": ports_of(false),
                "endpoints": [{
                    "addresses": [CONTROL_IP], "conditions": { "ready": true },
                }],
            }),
        ]
    };
    let mut items = vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "ms2m-system" } }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": "system:coredns" },
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "system:coredns" },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:coredns",
            },
            "subjects": [{
                "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns",
            }],
        }),
    ];
    let tcp = |name, number| Port { name, number, protocol: "TCP" };
    let dns = Port { name: "dns", number: 53, protocol: "UDP" };
    items.extend(service(
        "kube-system",
        "kube-dns",
        Some(DNS_SERVICE_IP),
        &[dns, tcp("dns-tcp", 53)],
    ));
    items.extend(service(
        "default",
        "rabbitmq",
        None,
        &[tcp("amqp", AMQP_PORT), tcp("management", MANAGEMENT_PORT)],
    ));
    items.extend(service("ms2m-system", "registry", None, &[tcp("http", REGISTRY_PORT)]));
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

struct Port {
    name: &'static str,
    number: u16,
    protocol: &'static str,
}

fn base64(text: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(text)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::plan::nodes;

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn crio_restores_only_without_a_signature_policy() {
        let text = crio();
        assert!(!text.contains("signature_policy"));
        assert!(text.contains("enable_criu_support = true"));
        assert!(text.contains("default_runtime = \"crun\""));
    }

    #[test]
    fn pods_reach_the_broker_under_their_own_address() {
        let text = parse(&cni(nodes(2)[1]));
        assert_eq!(text["plugins"][0]["ipMasq"], false);
        assert_eq!(text["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.214.2.0/24");
    }

    #[test]
    fn each_kubelet_keeps_its_pods_in_its_own_cgroup() {
        let roots: Vec<_> =
            nodes(2).into_iter().map(|n| parse(&kubelet(n))["cgroupRoot"].clone()).collect();
        assert_eq!(roots, ["/shadow-lab/worker-1/pods", "/shadow-lab/worker-2/pods"]);
    }

    #[test]
    fn both_names_of_the_registry_are_plain_http() {
        let text = registries();
        assert!(text.contains("location = \"registry.ms2m-system.svc:5000\"\ninsecure = true"));
        assert!(text.contains("location = \"10.213.0.1:5000\"\ninsecure = true"));
    }

    #[test]
    fn the_specifications_services_exist_with_their_ports() {
        let list = parse(&cluster());
        let ports = |namespace: &str, name: &str| -> Vec<u64> {
            list["items"]
                .as_array()
                .unwrap()
                .iter()
                .find(|item| {
                    item["kind"] == "Service"
                        && item["metadata"]["name"] == name
                        && item["metadata"]["namespace"] == namespace
                })
                .unwrap()["spec"]["ports"]
                .as_array()
                .unwrap()
                .iter()
                .map(|port| port["port"].as_u64().unwrap())
                .collect()
        };
        assert_eq!(ports("default", "rabbitmq"), [5672, 15672]);
        assert_eq!(ports("ms2m-system", "registry"), [5000]);
        assert_eq!(ports("kube-system", "kube-dns"), [53, 53]);
    }

    #[test]
    fn the_brokers_statistics_interval_is_left_alone() {
        assert!(!rabbitmq().contains("collect_statistics_interval"));
        let definitions = parse(&rabbitmq_definitions("shadow", "secret"));
        assert_eq!(definitions["users"][0]["name"], "shadow");
        assert_eq!(definitions["users"][1]["name"], "guest");
    }
}
