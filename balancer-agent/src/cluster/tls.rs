//! Who may connect: nodes that can show a certificate of the cluster's authority.
//!
//! The authority's Ed25519 key is derived from the secret, so every node has it, and
//! nobody else. For each of its lives a node makes a key pair that never leaves the
//! process, and issues itself a certificate that names its id and incarnation. Both sides
//! of a connection show theirs (TLS 1.3): without the secret, neither direction comes
//! about. There are no tickets: each connection is proven anew.
//!
//! Certificates hold for ever: they end with the process, and must not depend on clocks.
//! So TLS is told the same time at every check.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ED25519,
};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::extensions::GeneralName;

use super::ClusterError;
use super::id::{Incarnation, NodeId};
use super::keys::Keys;

/// The protocol between nodes and its version.
const ALPN: &[u8] = b"balancer-cluster/1";
/// The start of an Ed25519 private key in PKCS #8 (RFC 8410, 7); its 32 bytes follow.
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// What names in certificates end with.
const DOMAIN: &str = "balancer.internal";

/// A node's proof of who it is in one of its lives.
pub(super) struct Identity {
    /// The life.
    pub(super) incarnation: Incarnation,
    /// For connections from others.
    pub(super) acceptor: TlsAcceptor,
    /// For connections to others.
    pub(super) connector: TlsConnector,
}

impl Identity {
    /// Issues a certificate.
    pub(super) fn new(
        keys: &Keys,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<Self, ClusterError> {
        let authority = authority(keys)?;
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(certificate)?;
        let name = host(node, incarnation);
        let mut params = CertificateParams::new(vec![name.clone()]).map_err(certificate)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let issued = params.signed_by(&key, &authority).map_err(certificate)?;
        let chain = vec![issued.der().clone()];
        let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));

        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone())?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Self {
            incarnation,
            acceptor: TlsAcceptor::from(Arc::new(server(&provider, &roots, &chain, key())?)),
            connector: TlsConnector::from(Arc::new(client(&provider, roots, chain, key())?)),
        })
    }
}

/// A clock that stands still, within the time that certificates hold.
#[derive(Debug)]
struct Stopped;

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        // 2001-09-09
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            1_000_000_000,
        )))
    }
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, ClusterError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|_| ClusterError::Crypto("the authority can't be used"))?;
    let mut config = ServerConfig::builder_with_details(Arc::clone(provider), Arc::new(Stopped))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, ClusterError> {
    let mut config = ClientConfig::builder_with_details(Arc::clone(provider), Arc::new(Stopped))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The authority; the same on all nodes with the secret.
fn authority(keys: &Keys) -> Result<CertifiedIssuer<'static, KeyPair>, ClusterError> {
    let mut der = PKCS8_ED25519.to_vec();
    der.extend_from_slice(&keys.authority()?);
    let der = PrivatePkcs8KeyDer::from(der);
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519).map_err(certificate)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(certificate)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("authority.{DOMAIN}"));
    CertifiedIssuer::self_signed(params, key).map_err(certificate)
}

/// What goes wrong here is never about the secret's content, which stays unsaid.
fn certificate(_: rcgen::Error) -> ClusterError {
    ClusterError::Crypto("a certificate can't be made")
}

/// A life of a node as the host of a certificate.
fn host(node: NodeId, incarnation: Incarnation) -> String {
    format!("i{:016x}.n{:016x}.{DOMAIN}", incarnation.0, node.0)
}

/// The name that a life of a node has to show.
pub(super) fn server_name(
    node: NodeId,
    incarnation: Incarnation,
) -> Result<ServerName<'static>, ClusterError> {
    ServerName::try_from(host(node, incarnation))
        .map_err(|_| ClusterError::Crypto("a node's name is no host name"))
}

/// Who a verified certificate is of.
pub(super) fn named(chain: Option<&[CertificateDer<'_>]>) -> Option<(NodeId, Incarnation)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(chain?.first()?).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::DNSName(name) => read(name),
            _ => None,
        })
}

fn read(host: &str) -> Option<(NodeId, Incarnation)> {
    let (incarnation, rest) = host.strip_prefix('i')?.split_once(".n")?;
    let (node, domain) = rest.split_once('.')?;
    let number = |text: &str| match text.len() {
        16 => u64::from_str_radix(text, 16).ok(),
        _ => None,
    };
    let read = (NodeId(number(node)?), Incarnation(number(incarnation)?));
    (domain == DOMAIN).then_some(read)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::model::cluster::Secret;

    fn identity(secret: u8, node: u64, life: u64) -> Identity {
        let keys = Keys::new(&Secret::new(&[secret; 32]));
        Identity::new(&keys, NodeId(node), Incarnation(life)).unwrap()
    }

    /// Whom each side has found at the other end.
    async fn meet(
        client: &Identity,
        server: &Identity,
        wanted: (u64, u64),
    ) -> (bool, Option<(NodeId, Incarnation)>) {
        let (a, b) = tokio::io::duplex(64 << 10);
        let name = server_name(NodeId(wanted.0), Incarnation(wanted.1)).unwrap();
        let dial = async {
            let mut stream = client.connector.connect(name, a).await.ok()?;
            // A server refuses a client after the client's side of the handshake.
            stream.write_all(b"x").await.ok()?;
            let mut byte = [0];
            stream.read_exact(&mut byte).await.ok()
        };
        let accept = async {
            let mut stream = server.acceptor.accept(b).await.ok()?;
            let mut byte = [0];
            stream.read_exact(&mut byte).await.ok()?;
            stream.write_all(&byte).await.ok()?;
            named(stream.get_ref().1.peer_certificates())
        };
        let (dialed, accepted) = tokio::join!(dial, accept);
        (dialed.is_some(), accepted)
    }

    #[tokio::test]
    async fn nodes_with_the_secret_know_each_other() {
        let (a, b) = (identity(1, 7, 70), identity(1, 8, 80));
        let met = meet(&a, &b, (8, 80)).await;
        assert_eq!(met, (true, Some((NodeId(7), Incarnation(70)))));
    }

    #[tokio::test]
    async fn another_life_or_node_is_refused() {
        let (a, b) = (identity(1, 7, 70), identity(1, 8, 80));
        assert_eq!(meet(&a, &b, (8, 81)).await, (false, None));
        assert_eq!(meet(&a, &b, (9, 80)).await, (false, None));
    }

    #[tokio::test]
    async fn another_secret_is_refused_by_both_sides() {
        let (a, b) = (identity(1, 7, 70), identity(2, 8, 80));
        assert_eq!(meet(&a, &b, (8, 80)).await, (false, None));
        assert_eq!(meet(&b, &a, (7, 70)).await, (false, None));
    }

    #[tokio::test]
    async fn no_certificate_is_refused() {
        let server = identity(1, 8, 80);
        let keys = Keys::new(&Secret::new(&[1; 32]));
        let mut roots = RootCertStore::empty();
        roots.add(authority(&keys).unwrap().der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let client = Identity {
            incarnation: Incarnation(0),
            acceptor: server.acceptor.clone(),
            connector: TlsConnector::from(Arc::new(config)),
        };
        assert_eq!(meet(&client, &server, (8, 80)).await, (false, None));
    }

    #[test]
    fn only_whole_names_are_read() {
        let good = host(NodeId(1), Incarnation(u64::MAX));
        assert_eq!(read(&good), Some((NodeId(1), Incarnation(u64::MAX))));
        assert_eq!(read(&good[1..]), None);
        assert_eq!(read(&good[..good.len() - 1]), None);
        assert_eq!(read("i1.n1.balancer.internal"), None);
        assert_eq!(named(None), None);
    }
}
