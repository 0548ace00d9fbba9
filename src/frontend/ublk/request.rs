//! One request: from the kernel's descriptor to the device and back to a result.
//!
//! Source: `struct ublksrv_io_desc` of the Linux header `linux/ublk_cmd.h`. Addresses are in
//! 512-byte sectors whatever the logical block size. A result is the number of bytes moved (read,
//! write), 0 (the others), or a negated errno.

use crate::device::{BlockDevice, Checked, DeviceResult, WriteFlags, ZeroFlags};
use crate::units::{Sector, SectorCount, SectorRange};
use libublk::sys;
use nix::errno::Errno;

/// What the block layer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the tag's buffer.
    Read { start: Sector, len: usize },
    /// Store the tag's buffer.
    Write { start: Sector, len: usize, flags: WriteFlags },
    /// Make completed writes durable.
    Flush,
    /// Give up the range.
    Discard(SectorRange),
    /// Make the range read as zeros.
    WriteZeroes(SectorRange, ZeroFlags),
}

impl Request {
    /// Decodes `descriptor`; data requests must fit a buffer of `buffer` bytes.
    pub(super) fn decode(
        descriptor: &sys::ublksrv_io_desc,
        buffer: usize,
    ) -> Result<Request, Errno> {
        let start = Sector(descriptor.start_sector);
        let count = SectorCount(u64::from(descriptor.nr_sectors));
        let range = || SectorRange::new(start, count).ok_or(Errno::EINVAL);
        let has = |flag| descriptor.op_flags & flag != 0;
        let fua = has(sys::UBLK_IO_F_FUA);
        let data_len = || match usize::try_from(count.bytes()) {
            Ok(len) if len <= buffer => Ok(len),
            _ => Err(Errno::EINVAL),
        };
        match descriptor.op_flags & 0xff {
            sys::UBLK_IO_OP_READ => Ok(Request::Read { start, len: data_len()? }),
            sys::UBLK_IO_OP_WRITE => {
                Ok(Request::Write { start, len: data_len()?, flags: WriteFlags { fua } })
            }
            sys::UBLK_IO_OP_FLUSH => Ok(Request::Flush),
            sys::UBLK_IO_OP_DISCARD => Ok(Request::Discard(range()?)),
            sys::UBLK_IO_OP_WRITE_ZEROES => {
                let may_unmap = !has(sys::UBLK_IO_F_NOUNMAP);
                Ok(Request::WriteZeroes(range()?, ZeroFlags { may_unmap, fua }))
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Has the device serve the request with the tag's `buffer`; the result for the kernel.
    pub(super) async fn serve<D: BlockDevice>(self, device: &Checked<D>, buffer: &mut [u8]) -> i32 {
        match self.execute(device, buffer).await {
            Ok(bytes) => i32::try_from(bytes).unwrap_or(-(Errno::EINVAL as i32)),
            Err(error) => {
                tracing::debug!(request = ?self, %error, "request failed");
                -(error.errno() as i32)
            }
        }
    }

    async fn execute<D: BlockDevice>(
        self,
        device: &Checked<D>,
        buffer: &mut [u8],
    ) -> DeviceResult<usize> {
        match self {
            Request::Read { start, len } => {
                device.read(start, &mut buffer[..len]).await?;
                Ok(len)
            }
            Request::Write { start, len, flags } => {
                device.write(start, &buffer[..len], flags).await?;
                Ok(len)
            }
            Request::Flush => device.flush().await.map(|()| 0),
            Request::Discard(range) => device.discard(range).await.map(|()| 0),
            Request::WriteZeroes(range, flags) => {
                device.write_zeroes(range, flags).await.map(|()| 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ram::RamDisk;
    use crate::units::BlockSize;
    use futures::FutureExt;

    fn descriptor(op_flags: u32, start: u64, sectors: u32) -> sys::ublksrv_io_desc {
        sys::ublksrv_io_desc { op_flags, nr_sectors: sectors, start_sector: start, addr: 0 }
    }

    fn disk() -> Checked<RamDisk> {
        Checked::new(RamDisk::new(SectorCount(64), BlockSize::B512))
    }

    fn run(device: &Checked<RamDisk>, d: sys::ublksrv_io_desc, buffer: &mut [u8]) -> i32 {
        match Request::decode(&d, buffer.len()) {
            Ok(request) => request.serve(device, buffer).now_or_never().expect("memory is ready"),
            Err(errno) => -(errno as i32),
        }
    }

    #[test]
    fn data_goes_there_and_back() {
        let device = disk();
        let mut buffer = [7u8; 4096];
        let write = sys::UBLK_IO_OP_WRITE | sys::UBLK_IO_F_FUA;
        assert_eq!(run(&device, descriptor(write, 3, 2), &mut buffer), 1024);
        assert_eq!(device.inner().flushes(), 1);
        buffer.fill(0);
        assert_eq!(run(&device, descriptor(sys::UBLK_IO_OP_READ, 2, 4), &mut buffer), 2048);
        assert!(buffer[..512].iter().all(|b| *b == 0));
        assert!(buffer[512..1536].iter().all(|b| *b == 7));
        assert!(buffer[1536..].iter().all(|b| *b == 0));
        assert_eq!(run(&device, descriptor(sys::UBLK_IO_OP_DISCARD, 3, 1), &mut buffer), 0);
        assert_eq!(run(&device, descriptor(sys::UBLK_IO_OP_READ, 3, 2), &mut buffer), 1024);
        assert!(buffer[..512].iter().all(|b| *b == 0));
        assert!(buffer[512..1024].iter().all(|b| *b == 7));
    }

    #[test]
    fn flags_are_decoded() {
        let range = SectorRange::new(Sector(8), SectorCount(u32::MAX.into())).unwrap();
        let zero = |flags| descriptor(sys::UBLK_IO_OP_WRITE_ZEROES | flags, 8, u32::MAX);
        assert_eq!(
            Request::decode(&zero(0), 0),
            Ok(Request::WriteZeroes(range, ZeroFlags { may_unmap: true, fua: false }))
        );
        assert_eq!(
            Request::decode(&zero(sys::UBLK_IO_F_NOUNMAP | sys::UBLK_IO_F_FUA), 0),
            Ok(Request::WriteZeroes(range, ZeroFlags { may_unmap: false, fua: true }))
        );
        // The block layer's flush requests have no position: theirs is -1.
        let flush = descriptor(sys::UBLK_IO_OP_FLUSH, u64::MAX, 0);
        assert_eq!(Request::decode(&flush, 0), Ok(Request::Flush));
    }

    #[test]
    fn bad_requests_are_answered_with_an_errno() {
        let mut buffer = [0u8; 1024];
        let read = sys::UBLK_IO_OP_READ;
        let refused = |d, errno: Errno, buffer: &mut [u8]| {
            assert_eq!(run(&disk(), d, buffer), -(errno as i32), "{d:?}");
        };
        refused(descriptor(read, 0, 3), Errno::EINVAL, &mut buffer);
        refused(descriptor(read, u64::MAX, 1), Errno::EINVAL, &mut buffer);
        refused(descriptor(sys::UBLK_IO_OP_DISCARD, u64::MAX, 1), Errno::EINVAL, &mut buffer);
        refused(descriptor(read, 63, 2), Errno::ENOSPC, &mut buffer);
        refused(descriptor(sys::UBLK_IO_OP_ZONE_RESET, 0, 1), Errno::EOPNOTSUPP, &mut buffer);
        refused(descriptor(sys::UBLK_IO_OP_WRITE_SAME, 0, 1), Errno::EOPNOTSUPP, &mut buffer);
        let disk = Checked::new(RamDisk::new(SectorCount(64), BlockSize::B512).read_only());
        let write = descriptor(sys::UBLK_IO_OP_WRITE, 0, 1);
        assert_eq!(run(&disk, write, &mut buffer), -(Errno::EROFS as i32));
    }
}
