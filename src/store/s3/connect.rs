//! From options and the AWS environment to a client: credentials, region, endpoint, limits.

use super::pinned::Pins;
use super::{Path, S3Location, S3Options, S3Store};
use crate::error::{Error, Result};
use crate::store::{Op, StoreErrorKind, StoreResult};
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use aws_types::service_config::ServiceConfigKey;
use std::sync::Arc;
use std::time::Duration;

/// The region where nothing names one: what servers other than Amazon's expect.
const DEFAULT_REGION: &str = "us-east-1";

/// How long the instance metadata service of a cloud host may take. It answers at once or is not
/// there at all.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);

impl S3Store {
    /// The store at `location`. Makes no request to it: see [`S3Store::ensure_bucket`].
    ///
    /// Errors: `Usage` where the endpoint is no `http://` or `https://` URL; `Failed` where the host's
    /// certificates cannot be read.
    pub async fn connect(location: S3Location, options: &S3Options) -> Result<S3Store> {
        if let Some(url) = &options.endpoint_url {
            verify_endpoint(url)?;
        }
        let metadata = imds::Client::builder()
            .max_attempts(1)
            .connect_timeout(METADATA_TIMEOUT)
            .read_timeout(METADATA_TIMEOUT)
            // Beyond the two above, which say that the service is not there; this one says nothing.
            .operation_attempt_timeout(3 * METADATA_TIMEOUT)
            .operation_timeout(3 * METADATA_TIMEOUT)
            .build();
        let region = region(options, &metadata).await;
        let credentials = match &options.credentials {
            Some(provider) => provider.clone(),
            None => SharedCredentialsProvider::new(
                DefaultCredentialsChain::builder()
                    .imds_client(metadata)
                    .region(region.clone())
                    .build()
                    .await,
            ),
        };
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(region.clone())
            .credentials_provider(credentials)
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder().connect_timeout(options.connect_timeout).build(),
            )
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(url) = &options.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        let pins = Pins {
            address: options.address,
            source: options.source,
            interface: options.interface.clone(),
            timeout: options.connect_timeout,
            is_plain: options.endpoint_url.as_ref().is_some_and(|url| url.starts_with("http://")),
        };
        if pins.are_any() {
            loader = loader.http_client(pins.client()?);
        }
        let shared = loader.load().await;
        let endpoint = options.endpoint_url.clone().or_else(|| configured_endpoint(&shared));
        let config = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(endpoint.is_some())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        let path = Path {
            location,
            server: server(options, endpoint.as_deref(), &region),
            has_endpoint: endpoint.is_some(),
            region: region.to_string(),
            answer_timeout: options.answer_timeout,
            min_rate: options.min_rate,
            single_deletes: false.into(),
        };
        Ok(S3Store { client: Client::from_conf(config), path: Arc::new(path) })
    }
}

/// The server in words.
fn server(options: &S3Options, endpoint: Option<&str>, region: &Region) -> String {
    let name = endpoint.map_or_else(|| format!("Amazon S3 in {region}"), str::to_owned);
    let address = options.address.map(|address| format!(" ({address})")).unwrap_or_default();
    let source = options.source.map(|source| format!(" by {source}")).unwrap_or_default();
    format!("{name}{address}{source}")
}

async fn region(options: &S3Options, metadata: &imds::Client) -> Region {
    let profile = ProfileFileRegionProvider::builder().build();
    let chain = RegionProviderChain::first_try(options.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile);
    // The cloud host's own region says something about Amazon's buckets only.
    let chain = match options.endpoint_url {
        Some(_) => chain,
        None => {
            let provider = imds::region::ImdsRegionProvider::builder();
            chain.or_else(provider.imds_client(metadata.clone()).build())
        }
    };
    chain.region().await.unwrap_or_else(|| Region::from_static(DEFAULT_REGION))
}

/// The endpoint that the environment or the profile sets for S3, or for every service.
fn configured_endpoint(shared: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all three parts are set");
    shared
        .service_config()
        .and_then(|service| service.load_config(key))
        .or_else(|| shared.endpoint_url().map(str::to_owned))
}

fn verify_endpoint(url: &str) -> Result<()> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '@');
    match host {
        Some(host) if !host.is_empty() && !host.starts_with(':') && !url.contains(odd) => Ok(()),
        _ => Err(Error::usage(format!("the endpoint {url:?} is no URL of a server"))
            .hint("it looks like http://127.0.0.1:9000 or https://s3.example.org")),
    }
}

/// See [`S3Store::ensure_bucket`].
pub(super) async fn ensure_bucket(store: &S3Store, create: bool) -> StoreResult<bool> {
    let bucket = store.bucket();
    let found = store.send(Op::Head, "", 0, store.client.head_bucket().bucket(bucket).send()).await;
    match found {
        Ok(_) => return Ok(false),
        Err(mut e) if e.kind == StoreErrorKind::NotFound => {
            e.detail = format!("bucket {bucket:?} does not exist");
            if !create {
                return Err(e);
            }
        }
        Err(e) => return Err(e),
    }
    let region = store.path.region.as_str();
    // Amazon wants the region named except for the oldest one; others know only their own.
    let place = (!store.path.has_endpoint && region != DEFAULT_REGION).then(|| {
        CreateBucketConfiguration::builder()
            .location_constraint(BucketLocationConstraint::from(region))
            .build()
    });
    let request =
        store.client.create_bucket().bucket(bucket).set_create_bucket_configuration(place);
    store
        .within(Op::Put, "", 0, async {
            match request.send().await {
                Ok(_) => Ok(true),
                Err(e) => match e.as_service_error() {
                    Some(service) if service.is_bucket_already_owned_by_you() => Ok(false),
                    _ => Err(super::errors::translate(&store.path, Op::Put, "", &e)),
                },
            }
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_of_servers() {
        for good in ["http://127.0.0.1:7480", "https://s3.example.org/", "http://[::1]:9000"] {
            assert!(verify_endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:7480", "ftp://x", "http://", "http://:80", "http://a b"] {
            let error = verify_endpoint(bad).unwrap_err().to_string();
            assert!(error.contains("it looks like"), "{error}");
        }
    }
}
