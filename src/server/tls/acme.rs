//! Certificates from an authority, by ACME (RFC 8555). Whether the server is at its names and addresses
//! is proved over TLS at its own port (RFC 8737, RFC 8738).

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use tokio::time::{sleep, timeout};

use super::{Certificate, Challenges, Served, certificate, directory::Https};
use crate::{
    core::{renewal::Renewal, subject::Subject},
    error::{Error, ErrorKind},
    native::{roots::Roots, secret},
    server::config::TlsConfig,
};

/// The file of the account at the authority in the data directory.
const ACCOUNT_FILE: &str = "acme-account.json";
/// The file of the certificate and its key in the data directory.
const CERTIFICATE_FILE: &str = "acme-certificate.pem";
/// What stands before the directory of the authority in the file of the certificate.
const ISSUED_BY: &str = "Issued-By: ";
/// The longest of these files.
const MAX_FILE_LEN: u64 = 256 * 1024;
/// How long one order may take.
const ORDER: Duration = Duration::from_secs(5 * 60);
/// How long the authority may take to check a challenge, and to issue the certificate.
const CHECK: Duration = Duration::from_secs(2 * 60);
/// The longest time between two looks at the clock, which stops while the machine sleeps.
const LOOK: Duration = Duration::from_secs(60);
/// The profile of Let's Encrypt for addresses. Its certificates last for six days.
const SHORT_LIVED: &str = "shortlived";
/// What an authority says of an account that it has forgotten (RFC 8555 section 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Orders certificates. It keeps its account and the last certificate.
pub(super) struct Acme {
    subjects: Vec<Subject>,
    contact: Option<String>,
    directory: String,
    roots: Roots,
    account: PathBuf,
    certificate: PathBuf,
}

/// Why an order has failed.
type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Acme {
    /// Returns `None` if `config` names nobody to order a certificate for.
    ///
    /// # Errors
    /// Fails if the file of authorities cannot be used. The settings have been checked before.
    pub(super) fn new(config: &TlsConfig, data: Option<&Path>) -> Result<Option<Self>, Error> {
        let subjects = config.subjects()?;
        let Some(data) = data.filter(|_| !subjects.is_empty()) else {
            return Ok(None);
        };
        let roots = Roots::load(config.directory_ca.as_deref()).map_err(|error| {
            let message = format!("tls.directory_ca: {error}");
            Error::new(ErrorKind::InvalidConfig, message).with_source(error)
        })?;
        Ok(Some(Self {
            subjects,
            contact: config.contact.as_ref().map(|to| format!("mailto:{to}")),
            directory: config.directory.clone(),
            roots,
            account: data.join(ACCOUNT_FILE),
            certificate: data.join(CERTIFICATE_FILE),
        }))
    }

    /// Whom the certificate is for.
    pub(super) fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// The certificate that was issued before, if it is for all subjects, and whether this authority
    /// has issued it.
    ///
    /// # Errors
    /// Fails if others can read the file. A file that holds no certificate counts as none, because
    /// another one can be ordered.
    pub(super) fn kept(&self) -> Result<Option<(Certificate, bool)>, Error> {
        let read = secret::read(&self.certificate, MAX_FILE_LEN);
        let read =
            read.map_err(|fault| Error::new(ErrorKind::Io, fault.describe(&self.certificate)))?;
        let parsed = read.and_then(|pem| {
            let parsed = Certificate::from_pem(&pem, &pem)
                .inspect_err(|error| tracing::warn!(%error, "the kept certificate is of no use"));
            Some((parsed.ok()?, is_issued_by(&pem, &self.directory)))
        });
        let is_for = |(certificate, _): &(Certificate, bool)| {
            let subjects = self.subjects.iter();
            subjects
                .clone()
                .all(|subject| certificate.subjects.contains(subject))
        };
        Ok(parsed.filter(is_for))
    }

    /// Renews the certificate in time, until the future is dropped. The old one is served until then.
    pub(super) async fn keep(&self, served: &Served, challenges: &Challenges) {
        // That of another authority is served until there is one of this authority.
        let kept = self.kept().ok().flatten().filter(|(_, is_ours)| *is_ours);
        let validity = kept.map(|(kept, _)| kept.validity);
        let mut renewal = Renewal::new(validity, now(), rand::random());
        loop {
            let mut wait = renewal.wait(now());
            while !wait.is_zero() {
                sleep(wait.min(LOOK)).await;
                wait = renewal.wait(now());
            }
            let ordered = timeout(ORDER, self.order(challenges)).await;
            let ordered = ordered.unwrap_or_else(|_| Err("the authority takes too long".into()));
            match ordered {
                Ok(certificate) => {
                    let days = certificate.validity.left(now()).as_secs() / (24 * 60 * 60);
                    tracing::info!(days, "a certificate was issued");
                    renewal.succeeded(certificate.validity, now(), rand::random());
                    served.set(certificate);
                    served.metrics.certificate_order("issued");
                }
                Err(error) => {
                    renewal.failed(now(), rand::random());
                    let seconds = renewal.wait(now()).as_secs();
                    served.fail();
                    served.metrics.certificate_order("failed");
                    tracing::warn!(%error, again_in = seconds, "no certificate was issued");
                }
            }
        }
    }

    /// Orders a certificate and keeps it.
    async fn order(&self, challenges: &Challenges) -> Result<Certificate, Failure> {
        let account = self.account().await?;
        let ordered = self.order_by(&account, challenges).await;
        if let Err(error) = &ordered
            && let Some(instant_acme::Error::Api(problem)) = error.downcast_ref()
            && problem.r#type.as_deref() == Some(NO_ACCOUNT)
        {
            // The next order makes a new account.
            fs::remove_file(&self.account)?;
        }
        ordered
    }

    async fn order_by(
        &self,
        account: &Account,
        challenges: &Challenges,
    ) -> Result<Certificate, Failure> {
        let identifiers: Vec<_> = self.subjects.iter().map(identifier).collect();
        let mut order = NewOrder::new(&identifiers);
        let has_ip = self
            .subjects
            .iter()
            .any(|one| matches!(one, Subject::Ip(_)));
        if has_ip
            && account
                .profiles()
                .any(|profile| profile.name == SHORT_LIVED)
        {
            order = order.profile(SHORT_LIVED);
        }
        let mut order = account.new_order(&order).await?;
        let checks = RetryPolicy::default().timeout(CHECK);
        let mut answered = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => return Err(format!("an authorization is {status:?}").into()),
            }
            let subject = authorization.identifier().to_string();
            let subject: Subject = subject.parse().map_err(|_| "an order for somebody else")?;
            let mut challenge = authorization
                .challenge(ChallengeType::TlsAlpn01)
                .ok_or("the authority does not check over TLS")?;
            let digest = challenge.key_authorization().digest();
            answered.push(challenges.answer(&subject, digest.as_ref())?);
            challenge.set_ready().await?;
        }
        match order.poll_ready(&checks).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) | Err(instant_acme::Error::Api(_)) => return Err(refusal(&mut order).await),
            Err(error) => return Err(error.into()),
        }
        let key = rcgen::KeyPair::generate()?;
        let request = certificate::params(&self.subjects)?.serialize_request(&key)?;
        order.finalize_csr(request.der()).await?;
        let chain = order.poll_certificate(&checks).await?;
        let pem = issued_by(&self.directory) + &key.serialize_pem() + &chain;
        let issued = Certificate::from_pem(pem.as_bytes(), pem.as_bytes())?;
        secret::replace(&self.certificate, pem.as_bytes())?;
        Ok(issued)
    }

    /// The account at the authority. It is made once.
    async fn account(&self) -> Result<Account, Failure> {
        let https = Https {
            roots: self.roots.clone(),
        };
        let builder = Account::builder_with_http(Box::new(https));
        let kept = secret::read(&self.account, MAX_FILE_LEN);
        let kept = kept.map_err(|fault| fault.describe(&self.account))?;
        if let Some(credentials) = kept.and_then(|kept| self.credentials(&kept)) {
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contact: Vec<_> = self.contact.as_deref().into_iter().collect();
        let account = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let made = builder.create(&account, self.directory.clone(), None).await;
        let (account, credentials) = made?;
        secret::replace(&self.account, &serde_json::to_vec(&credentials)?)?;
        Ok(account)
    }

    /// Reads an account, if it is one at this authority.
    fn credentials(&self, json: &[u8]) -> Option<AccountCredentials> {
        let value: serde_json::Value = serde_json::from_slice(json).ok()?;
        let is_here = value["directory"] == self.directory.as_str();
        serde_json::from_value(value).ok().filter(|_| is_here)
    }
}

/// What stands before the certificate in its file. Text between PEM blocks says nothing to others
/// (RFC 7468 section 2).
fn issued_by(directory: &str) -> String {
    format!("{ISSUED_BY}{directory}\n")
}

/// Whether the authority with this directory has issued the certificate in a file. An earlier version
/// did not write that.
fn is_issued_by(pem: &[u8], directory: &str) -> bool {
    let first = pem.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let written = first.strip_prefix(ISSUED_BY.as_bytes());
    written.is_none_or(|written| written == directory.as_bytes())
}

/// Why an authority has found an order invalid.
async fn refusal(order: &mut Order) -> Failure {
    let mut why = String::from("the authority refuses the order");
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        // What is known of it is from before the check.
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let problems = state.challenges.iter().filter_map(|one| one.error.as_ref());
        for problem in problems {
            why += &format!("; {}: {problem}", state.identifier());
        }
    }
    why.into()
}

fn identifier(subject: &Subject) -> Identifier {
    match subject {
        Subject::Name(name) => Identifier::Dns(name.clone()),
        Subject::Ip(ip) => Identifier::Ip(*ip),
    }
}

/// The time since the Unix epoch. Certificates have dates.
fn now() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_another_authority_is_served_and_does_not_count() {
        let home = tempfile::tempdir().unwrap();
        let acme = |directory: &str| {
            let config = TlsConfig {
                domains: vec!["relay.example".into()],
                directory: directory.into(),
                ..TlsConfig::default()
            };
            Acme::new(&config, Some(home.path())).unwrap().unwrap()
        };
        let here = acme("https://here.example/directory");
        assert!(here.kept().unwrap().is_none());
        let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).unwrap();
        let pem = made.signing_key.serialize_pem() + &made.cert.pem();
        let is_ours = |acme: &Acme| acme.kept().unwrap().map(|(_, is_ours)| is_ours);
        secret::replace(&here.certificate, pem.as_bytes()).unwrap();
        assert_eq!(is_ours(&here), Some(true), "an earlier version made it");
        let named = issued_by(&here.directory) + &pem;
        secret::replace(&here.certificate, named.as_bytes()).unwrap();
        assert_eq!(is_ours(&here), Some(true));
        assert_eq!(
            is_ours(&acme("https://there.example/directory")),
            Some(false)
        );
    }
}
