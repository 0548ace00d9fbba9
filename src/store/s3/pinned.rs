//! Connections to one address, from one address, or by one network interface.
//!
//! The name of the server stays what requests are signed for and what its certificate has to show. The SDK's own
//! client can be told nothing of where its connections come from, so this one is put in its place.

use crate::error::{Error, Result};
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::http::{
    HttpConnector as SdkConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector,
    http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use futures::future::BoxFuture;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;
use tower_service::Service;

/// How connections are made.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins {
    /// To this address, whatever the name of the server stands for.
    pub address: Option<IpAddr>,
    /// From this address of this host.
    pub source: Option<IpAddr>,
    /// By this network interface.
    pub interface: Option<String>,
    /// The longest wait for one.
    pub timeout: Duration,
    /// None is ever encrypted, so that it does not matter which certificates this host trusts.
    pub is_plain: bool,
}

impl Pins {
    /// Something is asked for that the usual client cannot do.
    pub fn are_any(&self) -> bool {
        self.address.is_some() || self.source.is_some() || self.interface.is_some()
    }

    /// A client that connects like that.
    ///
    /// Errors: failed, where the certificates that this host trusts cannot be read.
    pub fn client(self) -> Result<SharedHttpClient> {
        let mut tcp = HttpConnector::new_with_resolver(Resolver(self.address));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.timeout));
        tcp.set_local_address(self.source);
        if let Some(interface) = &self.interface {
            tcp.set_interface(interface);
        }
        let tls = HttpsConnectorBuilder::new();
        let tls = match self.is_plain {
            true => {
                let none =
                    ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
                        .with_safe_default_protocol_versions()
                        .map_err(|e| Error::failed("there is no TLS here").because(e))?;
                let none = none.with_root_certificates(RootCertStore::empty());
                tls.with_tls_config(none.with_no_client_auth())
            }
            false => tls.with_native_roots().map_err(|e| {
                Error::failed("the certificates that this host trusts cannot be read").because(e)
            })?,
        };
        let both = tls.https_or_http().enable_http1().wrap_connector(tcp);
        let mut builder = Client::builder(TokioExecutor::new());
        // Without it, idle connections are never closed.
        let client = builder.pool_timer(TokioTimer::new()).build(both);
        let connector = SharedHttpConnector::new(Pinned(client));
        Ok(http_client_fn(move |_, _| connector.clone()))
    }
}

/// Finds the same address for every name, if there is one.
#[derive(Clone, Debug)]
struct Resolver(Option<IpAddr>);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let pinned = self.0;
        Box::pin(async move {
            // The connector puts in the port.
            let found: Vec<SocketAddr> = match pinned {
                Some(address) => vec![SocketAddr::new(address, 0)],
                None => tokio::net::lookup_host((name.as_str(), 0)).await?.collect(),
            };
            Ok(found.into_iter())
        })
    }
}

/// The SDK's view of the client.
#[derive(Debug)]
struct Pinned(Client<HttpsConnector<HttpConnector<Resolver>>, SdkBody>);

impl SdkConnector for Pinned {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(e) => return HttpConnectorFuture::ready(Err(ConnectorError::user(e.into()))),
        };
        let answer = self.0.request(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await.map_err(failure)?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}

/// All that goes wrong between here and the server is of the path.
fn failure(e: ClientError) -> ConnectorError {
    let causes = std::iter::successors(e.source(), |e: &&(dyn StdError + 'static)| (*e).source());
    let mut kinds = causes.filter_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kinds.any(|kind| kind == io::ErrorKind::TimedOut) {
        true => ConnectorError::timeout(e.into()),
        false => ConnectorError::io(e.into()),
    }
}
