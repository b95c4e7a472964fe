//! Certificates and keys of the cluster, made fresh for every run of the lab.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

use crate::error::{LabError, Result};

/// A certificate and its private key, both PEM.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Who a certificate speaks for.
pub(crate) struct Subject<'a> {
    /// The user name Kubernetes sees.
    pub(crate) name: &'a str,
    /// The group Kubernetes sees.
    pub(crate) group: Option<&'a str>,
    /// DNS names it may serve as.
    pub(crate) dns: &'a [String],
    /// Addresses it may serve as.
    pub(crate) ips: &'a [IpAddr],
}

/// The cluster's certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let build = || {
            let mut params = CertificateParams::default();
            params.distinguished_name = distinguished_name("shadow-lab", None);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            CertifiedIssuer::self_signed(params, KeyPair::generate()?)
        };
        let issuer = build().map_err(failed("the lab's authority"))?;
        Ok(Self { issuer })
    }

    /// The authority's certificate and key; the controller manager signs with them.
    pub(crate) fn identity(&self) -> Identity {
        Identity { certificate: self.issuer.pem(), key: self.issuer.key().serialize_pem() }
    }

    /// A certificate that is good for serving and for calling.
    pub(crate) fn issue(&self, subject: &Subject<'_>) -> Result<Identity> {
        let build = || {
            let mut params = CertificateParams::new(subject.dns.to_vec())?;
            params.subject_alt_names.extend(subject.ips.iter().copied().map(SanType::IpAddress));
            params.distinguished_name = distinguished_name(subject.name, subject.group);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &self.issuer)?;
            Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
        };
        build().map_err(failed(subject.name))
    }
}

/// The key pair that signs service account tokens: (private, public), PEM.
pub(crate) fn service_account_keys() -> Result<(String, String)> {
    let key = KeyPair::generate().map_err(failed("service accounts"))?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn distinguished_name(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject.push(DnType::CommonName, name);
    subject
}

fn failed(subject: &str) -> impl FnOnce(rcgen::Error) -> LabError {
    let subject = subject.to_owned();
    |source| LabError::Certificate { subject, source }
}
