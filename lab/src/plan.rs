//! The address plan: who has which name and address. Pure.
//!
//! All of it lives in network namespaces of the lab; nothing on the host can collide.

use std::net::Ipv4Addr;

/// The machine that runs the control plane, RabbitMQ, the registry and DNS.
pub const CONTROL: &str = "control";
/// The control machine's address, on the bridge that joins all machines.
pub const CONTROL_IP: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);
/// The network of all pods.
pub const POD_NETWORK: &str = "10.214.0.0/16";
/// The network of Service addresses.
pub const SERVICE_NETWORK: &str = "10.215.0.0/16";
/// The Service address of the API server, the first of the network by convention.
pub const API_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 215, 0, 1);
/// The Service address of cluster DNS.
pub const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 215, 0, 10);
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// RabbitMQ's AMQP port.
pub const AMQP_PORT: u16 = 5672;
/// RabbitMQ's management port.
pub const MANAGEMENT_PORT: u16 = 15672;
/// The registry's port.
pub const REGISTRY_PORT: u16 = 5000;
/// The registry as pods, nodes and manifests name it.
pub const REGISTRY_NAME: &str = "registry.ms2m-system.svc:5000";
/// The most nodes a lab can have: one third octet and one last octet each.
pub const MAX_NODES: u8 = 200;

/// One worker node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    index: u8,
}

impl Node {
    /// Its name, as the specification's manifests write it.
    pub fn name(self) -> String {
        format!("worker-{}", self.index)
    }

    /// Its address on the bridge.
    pub fn ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, 1, self.index)
    }

    /// The network of its pods.
    pub fn pod_network(self) -> String {
        format!("10.214.{}.0/24", self.index)
    }

    /// The control machine's end of its cable.
    pub fn cable(self) -> String {
        format!("veth-{}", self.index)
    }
}

/// The nodes of a lab, `worker-1` first.
pub fn nodes(count: u8) -> Vec<Node> {
    (1..=count).map(|index| Node { index }).collect()
}

/// `/etc/hosts` of every machine. Container runtimes don't use cluster DNS, so the
/// registry's name must be here.
pub fn hosts(nodes: &[Node]) -> String {
    let hosts = format!(
        "127.0.0.1 localhost\n{CONTROL_IP} {CONTROL} registry.ms2m-system.svc rabbitmq.default.svc\n"
    );
    nodes.iter().fold(hosts, |hosts, node| hosts + &format!("{} {}\n", node.ip(), node.name()))
}

/// `ip -batch` input for the control machine. `pids` are the init processes of the
/// nodes, in the same order: they name the network namespaces the cables lead to.
pub fn control_links(nodes: &[Node], pids: &[u32]) -> String {
    let bridge = format!(
        "link add br0 type bridge\n\
         address add {CONTROL_IP}/16 dev br0\n\
         link set br0 up\n\
         route add {SERVICE_NETWORK} dev br0\n"
    );
    nodes.iter().zip(pids).fold(bridge, |batch, (node, pid)| {
        let (network, ip) = (node.pod_network(), node.ip());
        batch + &cable_to(*node, *pid) + &format!("route add {network} via {ip}\n")
    })
}

/// `ip -batch` input for the control machine: the cable to one node.
pub fn cable_to(node: Node, pid: u32) -> String {
    let cable = node.cable();
    format!(
        "link add {cable} type veth peer name eth0 netns {pid}\n\
         link set {cable} master br0 up\n"
    )
}

/// `ip -batch` input for one node: its address, and routes to everyone else's pods.
/// Service addresses take the default route until kube-proxy rewrites them.
pub fn node_links(node: Node, nodes: &[Node]) -> String {
    let own = format!(
        "address add {}/16 dev eth0\nlink set eth0 up\nroute add default via {CONTROL_IP}\n",
        node.ip()
    );
    nodes.iter().filter(|other| **other != node).fold(own, |batch, other| {
        batch + &format!("route add {} via {}\n", other.pod_network(), other.ip())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_machine_has_its_own_address_and_network() {
        let nodes = nodes(MAX_NODES);
        let addresses: BTreeSet<_> =
            nodes.iter().map(|node| node.ip()).chain([CONTROL_IP]).collect();
        let networks: BTreeSet<_> = nodes.iter().map(|node| node.pod_network()).collect();
        assert_eq!(addresses.len(), nodes.len() + 1);
        assert_eq!(networks.len(), nodes.len());
    }

    #[test]
    fn the_specification_names_the_nodes() {
        let names: Vec<_> = nodes(2).into_iter().map(Node::name).collect();
        assert_eq!(names, ["worker-1", "worker-2"]);
    }

    #[test]
    fn a_node_routes_to_every_other_nodes_pods_but_its_own() {
        let nodes = nodes(3);
        let batch = node_links(nodes[1], &nodes);
        assert!(batch.contains("route add 10.214.1.0/24 via 10.213.1.1\n"));
        assert!(batch.contains("route add 10.214.3.0/24 via 10.213.1.3\n"));
        assert!(!batch.contains("10.214.2.0/24"));
    }

    #[test]
    fn cables_lead_to_the_nodes_init_processes() {
        let batch = control_links(&nodes(2), &[41, 42]);
        assert!(batch.contains("link add veth-1 type veth peer name eth0 netns 41\n"));
        assert!(batch.contains("link add veth-2 type veth peer name eth0 netns 42\n"));
    }

    #[test]
    fn every_machine_resolves_the_registry_and_the_nodes() {
        assert_eq!(
            hosts(&nodes(1)),
            "127.0.0.1 localhost\n\
             10.213.0.1 control registry.ms2m-system.svc rabbitmq.default.svc\n\
             10.213.1.1 worker-1\n"
        );
    }
}
