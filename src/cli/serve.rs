//! Serving volumes over network protocols.

use super::attach::ended;
use super::{Context, args, names};
use crate::daemon::{DoorSpec, Ready, RunDir, run_foreground};
use crate::error::{Error, Result};
use crate::frontend::nbd::{Listen, was_handed};
use crate::pool::VolumeSpec;
use sd_notify::NotifyState;
use serde_json::json;

pub(super) async fn nbd(context: &Context, serve: args::ServeNbd) -> Result<()> {
    let names = match serve.all {
        true => every_volume(context).await?,
        false => names(&serve.names)?,
    };
    let volumes = serve.open.views(names)?;
    let Some(first) = volumes.first() else {
        return Err(Error::usage("there is no volume to serve").hint("name one, or create one"));
    };
    let listen = match (serve.socket, serve.listen) {
        (_, Some(address)) => address,
        (Some(path), None) => {
            let absolute = std::path::absolute(&path);
            absolute
                .map_err(|e| Error::usage("--socket is no path").because(e))?
                .display()
                .to_string()
        }
        (None, None) if was_handed() => "systemd".to_owned(),
        (None, None) => RunDir::open()?.nbd_socket(first).display().to_string(),
    };
    let tls = serve.tls.options(&volumes)?;
    if tls.is_none() && !serve.tls.is_off() {
        warn_of_strangers(&listen);
    }
    let connections = Some(serve.max_connections as usize);
    let door = DoorSpec::Nbd { listen, tls, connections };
    let spec = serve.open.target(context.location()?, volumes, door)?;
    let show = |ready: &Ready| {
        let exports = ready.volumes.iter().map(|volume| {
            json!({
                "name": volume.name, "id": volume.id, "uri": volume.device,
                "read_only": volume.read_only, "pid": ready.pid,
            })
        });
        let uris = || {
            let uris: Vec<&str> = ready.volumes.iter().map(|v| v.device.as_str()).collect();
            uris.join("\n")
        };
        context.show(&exports.collect::<Vec<_>>(), uris)?;
        tell_the_service_manager()
    };
    ended(run_foreground(&spec, show).await?)
}

/// That it is ready. Nobody may be listening: then this does nothing.
fn tell_the_service_manager() -> Result<()> {
    sd_notify::notify(&[NotifyState::Ready])
        .map_err(|e| Error::failed("cannot tell the service manager").because(e))
}

pub(super) async fn vhost_user(context: &Context, serve: args::ServeVhostUser) -> Result<()> {
    let volumes = serve.open.views(vec![serve.name.parse()?])?;
    let socket = std::path::absolute(&serve.socket)
        .map_err(|e| Error::usage("--socket is no path").because(e))?;
    let door = DoorSpec::VhostUser { socket, recovery: !serve.no_recovery };
    let spec = serve.open.target(context.location()?, volumes, door)?;
    let show = |ready: &Ready| {
        let volume = &ready.volumes[0];
        let document = json!({
            "name": volume.name, "id": volume.id, "device": volume.device,
            "read_only": volume.read_only, "pid": ready.pid,
        });
        context.show(&document, || volume.device.clone())?;
        tell_the_service_manager()
    };
    ended(run_foreground(&spec, show).await?)
}

/// Says what it means to listen beyond this host without TLS. What is no address is refused later.
fn warn_of_strangers(listen: &str) {
    if let Ok(Listen::Tcp(address)) = listen.parse::<Listen>()
        && !address.ip().is_loopback()
    {
        eprintln!(
            "objblk: without TLS, anyone who reaches {address} may read and write what is served; \
             give --tls-certificates, or --tls off if that is meant"
        );
    }
}

async fn every_volume(context: &Context) -> Result<Vec<VolumeSpec>> {
    let entries = context.open().await?.pool.list().await?;
    let usable = entries.into_iter().filter(|entry| entry.is_usable());
    usable.map(|entry| entry.name.parse()).collect()
}
