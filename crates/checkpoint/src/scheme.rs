//! HTTPS or HTTP.
//!
//! A registry is asked by HTTPS first. Where nothing speaks TLS, plain HTTP is used for a registry
//! inside the cluster (its name ends in `.svc` or has no dot, or it is an address) and nowhere else,
//! and credentials are sent over it only when that was allowed.

/// Whether plain HTTP may be tried for `host`.
pub fn may_be_plain(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(_) => return true,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.ends_with(".svc")
        || name.ends_with(".svc.cluster.local")
        || !name.contains('.')
        || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::may_be_plain;

    #[test]
    fn only_registries_of_the_cluster() {
        for host in ["registry.ms2m-system.svc:5000", "localhost:5000", "10.0.0.1:5000", "[::1]:5"] {
            assert!(may_be_plain(host), "{host}");
        }
        for host in ["registry.example", "ghcr.io:443", "a.svc.example.com"] {
            assert!(!may_be_plain(host), "{host}");
        }
    }
}
