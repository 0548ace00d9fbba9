//! Clones of a moment of the past in a simulated world: a snapshot of the volume now, a clone of that, and what
//! differs copied into it from the past. Until it is done the clone has no name, and nobody uses it.

use crate::actor::Actor;
use crate::client::{Client, Next};
use crate::model::Image;
use objblk::error::Error;
use objblk::format::VolumeId;
use objblk::transfer::stream::put_back;
use objblk::units::Seq;
use objblk::volume::{Mode, Moment, Volume, VolumeOptions};
use rand::Rng;

impl Actor {
    /// Makes a clone of what the volume was at some moment that is kept, if there is one. That it is called off
    /// is not judged; what the clone holds is.
    pub async fn clone_the_past(&self, client: &Client) -> Result<(), String> {
        let gone = self.world.state().archive.gone();
        let Some(kept) = self.world.auditor().kept(&gone, None)? else { return Ok(()) };
        let Some(oldest) = kept.points.first() else { return Ok(()) };
        let slots = oldest.next.0..=kept.newest.next.0;
        let slot = Seq(self.world.random(|rng| rng.random_range(slots)));
        let Some(expected) = self.world.auditor().image_at(&gone, slot)? else { return Ok(()) };
        let before: Vec<_> = client.volume.snapshots().iter().map(|entry| entry.id).collect();
        if client.make_snapshot(0).await == Next::End {
            return Ok(());
        }
        let now = client.volume.snapshots().into_iter().find(|entry| !before.contains(&entry.id));
        let Some(now) = now else { return Ok(()) };
        let Some(which) = self.world.clone_of(now.id) else { return Ok(()) };
        let id = {
            let mut state = self.world.state();
            state.clones[which].nameless = true;
            state.clones[which].id
        };
        match self.fill(id, (slot, &now.name)).await {
            Ok(volume) => self.is_the_past(which, volume, expected).await,
            Err(error) => {
                self.world.trace(|| format!("{id} does not become the past: {error}"));
                Ok(())
            }
        }
    }

    /// Makes the clone `id` of the snapshot `now` what the volume was before `slot`.
    async fn fill(&self, id: VolumeId, (slot, now): (Seq, &str)) -> Result<Volume, Error> {
        let look = |at, snapshot| VolumeOptions { at, snapshot, ..self.options.clone() };
        let origin = self.world.id;
        let past = self.open_plainly(origin, look(Some(Moment::Slot(slot)), None)).await?;
        let base = self.open_plainly(origin, look(None, Some(now.to_owned()))).await?;
        let volume = self.open_plainly(id, self.to_write()).await?;
        match put_back(&past, &base, &volume, &|_| ()).await {
            Ok(_) => Ok(volume),
            Err(error) => {
                volume.abandon();
                Err(error)
            }
        }
    }

    fn to_write(&self) -> VolumeOptions {
        let mode = Mode::ReadWrite { takeover: true };
        VolumeOptions { mode, ..self.options.clone() }
    }

    async fn is_the_past(
        &self,
        which: usize,
        volume: Volume,
        expected: Image,
    ) -> Result<(), String> {
        let found = self.survey_clone(&volume).await?;
        if volume.close().await.is_err() {
            volume.abandon();
            return Ok(());
        }
        if found.is_some_and(|found| found != expected) {
            return Err(format!("the clone {which} is not what the volume was"));
        }
        let mut state = self.world.state();
        state.counts.cloned_past += 1;
        state.clones[which].becomes(expected);
        state.clones[which].nameless = false;
        Ok(())
    }
}
