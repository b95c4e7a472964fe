//! HTTPS or HTTP.
//!
//! A registry is asked by HTTPS first. Plain HTTP is tried only when what answered there was not TLS:
//! a wrong certificate never leads to it. It is then used for a registry of the cluster (its name ends
//! in `.svc` or has no dot, or it is a loopback or private address, as the specification's
//! `registry.ms2m-system.svc:5000`), and without credentials. `--plain-http` lifts both conditions.
//! Elsewhere it is refused: whoever can make a name on the internet answer without TLS would get a
//! process's whole memory.

use std::error::Error as StdError;
use std::net::IpAddr;

/// Whether plain HTTP may be used for `host` without being told so.
pub(super) fn is_of_the_cluster(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            address.is_loopback() || address.is_private() || address.is_link_local()
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
        Err(_) => {
            let name = name.to_ascii_lowercase();
            let name = name.strip_suffix(".cluster.local").unwrap_or(&name);
            !name.contains('.') || name.rsplit('.').next() == Some("svc")
        }
    }
}

/// Whether `error` says that the other side answered in something else than TLS.
pub(super) fn is_not_tls(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidMessage(_)) = error.downcast_ref::<rustls::Error>() {
            return true;
        }
        // An I/O error's `source` skips the error that it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as &(dyn StdError + 'static)).or(error.source());
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registries_of_the_cluster() {
        for host in [
            "registry.ms2m-system.svc:5000",
            "registry.ms2m-system.svc.cluster.local",
            "localhost:5000",
            "10.0.0.1:5000",
            "127.0.0.1",
            "[::1]:5000",
            "[fd00::1]",
        ] {
            assert!(is_of_the_cluster(host), "{host}");
        }
        for host in [
            "registry.example",
            "ghcr.io:443",
            "a.svc.example.com",
            "8.8.8.8:5000",
            "[2001:db8::1]",
        ] {
            assert!(!is_of_the_cluster(host), "{host}");
        }
    }

    #[test]
    fn a_wrong_certificate_is_tls() {
        let wrap = |error: rustls::Error| std::io::Error::other(error);
        let garbled = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(is_not_tls(&wrap(garbled)));
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(!is_not_tls(&wrap(unknown)));
        assert!(!is_not_tls(&std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
    }
}
