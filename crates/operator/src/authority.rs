//! The authority of the agents' certificates: the operator's own, kept in a Secret, renewed in time.
//!
//! | Secret in `ms2m-system` | has | read by |
//! |---|---|---|
//! | `ms2m-agent-ca` | the authorities, the youngest first, with their keys | the operator |
//! | `ms2m-agent-tls` | `tls.crt`, `tls.key`: the agents' certificate; `ca.crt`: all authorities | the agents; its `ca.crt` whoever speaks to one |
//!
//! A new authority is made known some time before it signs: nobody meets a certificate that he can't check.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use shadow_checkpoint::agent::wire::{NAMESPACE, SERVER_NAME};

use crate::observe::chain;

/// The agents' certificate.
pub const TLS: &str = "ms2m-agent-tls";
const AUTHORITIES: &str = "ms2m-agent-ca";
const KEY: &str = "authorities.json";
/// Which authority has signed a certificate, and when.
const SIGNED: &str = "migration.ms2m.io/signed";
const DAY: i64 = 86_400;
/// How long an authority and a certificate are good, in seconds. They are renewed after two thirds.
const AUTHORITY_LIVES: i64 = 365 * DAY;
const CERTIFICATE_LIVES: i64 = 30 * DAY;
/// How long an authority is known before it signs: kubelets bring it to the agents in a minute or two.
const KNOWN_FIRST: i64 = 600;
/// A clock may be behind.
const BEFORE: i64 = 3_600;
const LOOKS: Duration = Duration::from_mins(1);
const RETRY: Duration = Duration::from_secs(10);

/// Certificate and key, PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Authority {
    certificate: String,
    key: String,
    /// In seconds since 1970.
    since: i64,
}

impl Authority {
    fn new(now: i64) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = subject();
        (params.not_before, params.not_after) = validity(now, AUTHORITY_LIVES)?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key: key.serialize_pem(), since: now })
    }

    /// A certificate and its key, for all agents: whoever takes a node over could speak for another
    /// agent anyway, with the token that it finds there.
    fn issue(&self, now: i64) -> Result<(String, String), rcgen::Error> {
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, SERVER_NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(now, CERTIFICATE_LIVES)?;
        let key = KeyPair::generate()?;
        let issuer = Issuer::new(subject(), KeyPair::from_pem(&self.key)?);
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    }
}

/// The same for all authorities.
fn subject() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "ms2m-agent authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn validity(
    now: i64,
    lives: i64,
) -> Result<(time::OffsetDateTime, time::OffsetDateTime), rcgen::Error> {
    let at = time::OffsetDateTime::from_unix_timestamp;
    let both = at(now - BEFORE).and_then(|from| Ok((from, at(now + lives)?)));
    both.map_err(|_| rcgen::Error::Time)
}

fn renewed(age: i64, lives: i64) -> bool {
    age > lives / 3 * 2
}

/// The authorities as they should be, the youngest first.
fn renew(mut known: Vec<Authority>, now: i64) -> Result<Vec<Authority>, rcgen::Error> {
    known.retain(|authority| now - authority.since < AUTHORITY_LIVES);
    if known.first().is_none_or(|youngest| renewed(now - youngest.since, AUTHORITY_LIVES)) {
        known.insert(0, Authority::new(now)?);
    }
    Ok(known)
}

/// Who signs now: the youngest that everybody has had the time to hear of.
fn signer(known: &[Authority], now: i64) -> Option<&Authority> {
    let heard_of = known.iter().find(|authority| now - authority.since >= KNOWN_FIRST);
    heard_of.or(known.first())
}

/// Keeps both Secrets as they should be, for ever.
pub async fn keep(client: Client) {
    loop {
        let now = jiff::Timestamp::now().as_second();
        let pause = match ensure(&client, now).await {
            Ok(()) => LOOKS,
            Err(why) => {
                tracing::warn!(why, "can't keep the agents' certificates");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn ensure(client: &Client, now: i64) -> Result<(), String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let broken = |error: rcgen::Error| format!("make a certificate: {error}");
    let stored = get(&secrets, AUTHORITIES).await?;
    let known: Vec<Authority> = match stored.as_ref().and_then(|secret| data(secret, KEY)) {
        Some(text) => serde_json::from_str(&text)
            .map_err(|_| format!("Secret {NAMESPACE}/{AUTHORITIES} is damaged; delete it"))?,
        None => Vec::new(),
    };
    let wanted = renew(known.clone(), now).map_err(broken)?;
    if wanted != known {
        let text = serde_json::to_string(&wanted).map_err(|error| error.to_string())?;
        put(&secrets, stored, AUTHORITIES, None, [(KEY, text)]).await?;
    }
    let Some(signer) = signer(&wanted, now) else { return Ok(()) };
    let stored = get(&secrets, TLS).await?;
    let bundle: String = wanted.iter().map(|authority| authority.certificate.as_str()).collect();
    let mark = stored.as_ref().and_then(|it| signature(it.annotations().get(SIGNED)?));
    let good =
        mark.is_some_and(|(by, at)| by == signer.since && !renewed(now - at, CERTIFICATE_LIVES));
    let found = stored.as_ref().and_then(|secret| data(secret, "ca.crt"));
    if good && found.as_deref() == Some(&bundle) {
        return Ok(());
    }
    let kept = stored.as_ref().filter(|_| good);
    let kept = kept.and_then(|it| Some((data(it, "tls.crt")?, data(it, "tls.key")?)));
    let (pair, at) = match (kept, mark) {
        (Some(pair), Some((_, at))) => (pair, at),
        _ => (signer.issue(now).map_err(broken)?, now),
    };
    let mark = format!("{} {at}", signer.since);
    let files = [("tls.crt", pair.0), ("tls.key", pair.1), ("ca.crt", bundle)];
    put(&secrets, stored, TLS, Some(mark), files).await
}

fn signature(text: &str) -> Option<(i64, i64)> {
    let (by, at) = text.split_once(' ')?;
    Some((by.parse().ok()?, at.parse().ok()?))
}

async fn get(secrets: &Api<Secret>, name: &str) -> Result<Option<Secret>, String> {
    let found = secrets.get_opt(name).await;
    found.map_err(|error| format!("read Secret {NAMESPACE}/{name}: {}", chain(&error)))
}

fn data(secret: &Secret, key: &str) -> Option<String> {
    let value = secret.data.as_ref()?.get(key)?;
    String::from_utf8(value.0.clone()).ok()
}

/// Writes a Secret, in the place of the version that was read: of two operators one comes too late,
/// and looks again.
async fn put<const N: usize>(
    secrets: &Api<Secret>,
    stored: Option<Secret>,
    name: &str,
    mark: Option<String>,
    files: [(&str, String); N],
) -> Result<(), String> {
    let there = stored.is_some();
    let mut secret = stored.unwrap_or_default();
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.managed_fields = None;
    let labels = secret.labels_mut();
    labels.insert("app.kubernetes.io/part-of".to_owned(), "shadow".to_owned());
    if let Some(mark) = mark {
        secret.annotations_mut().insert(SIGNED.to_owned(), mark);
    }
    let file = |(key, text): (&str, String)| (key.to_owned(), ByteString(text.into_bytes()));
    secret.data = Some(files.into_iter().map(file).collect());
    let params = PostParams::default();
    let written = if there {
        secrets.replace(name, &params, &secret).await
    } else {
        secrets.create(&params, &secret).await
    };
    match written {
        Err(error) => Err(format!("write Secret {NAMESPACE}/{name}: {}", chain(&error))),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn an_authority_is_renewed_in_time_and_signs_when_it_is_known() {
        let first = renew(Vec::new(), NOW).unwrap();
        assert_eq!(first.len(), 1);
        // There is nobody else.
        assert_eq!(signer(&first, NOW).unwrap().since, NOW);
        let later = NOW + AUTHORITY_LIVES / 3 * 2;
        assert!(renew(first.clone(), later).unwrap() == first);
        let both = renew(first, later + 1).unwrap();
        assert_eq!(both.iter().map(|it| it.since).collect::<Vec<_>>(), [later + 1, NOW]);
        assert_eq!(signer(&both, later + 1).unwrap().since, NOW);
        assert_eq!(signer(&both, later + 1 + KNOWN_FIRST).unwrap().since, later + 1);
        let alone = renew(both, NOW + AUTHORITY_LIVES).unwrap();
        assert_eq!(alone.len(), 1);
    }

    #[test]
    fn what_it_issues_can_be_checked() {
        let authority = Authority::new(NOW).unwrap();
        let (certificate, key) = authority.issue(NOW).unwrap();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE"));
        assert!(KeyPair::from_pem(&key).is_ok());
        assert_eq!(signature("1 2"), Some((1, 2)));
        assert_eq!(signature("1"), None);
    }
}
