//! Stored matrices as the device sees them: the mapped bytes themselves.
//!
//! A buffer is made over the pages that a part lies in, and kernels are given the part's distance from the first page.
//! A part that is not aligned as kernels need it, or whose pages the system does not take, is copied instead.

use block2::RcBlock;
use bytes::Bytes;
use candle_core::{MetalDevice, Result};
use candle_metal_kernels::metal::Buffer;
use objc2_metal::{MTLDevice, MTLResourceOptions};
use std::{
    ffi::c_void,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

/// What the first part of a matrix, its codes, is aligned to; others to [`ELEMENT`].
const WIDE: usize = 16;
/// The alignment of scales.
const ELEMENT: usize = 2;

/// The buffers of a matrix, made when a device first needs them, and shared by all clones of the matrix.
#[derive(Debug, Clone, Default)]
pub(crate) struct Residence(Arc<Mutex<Option<Arc<Resident>>>>);

/// The parts of a matrix on one device.
#[derive(Debug)]
pub(crate) struct Resident {
    device: MetalDevice,
    parts: Vec<(Arc<Buffer>, usize)>,
}

impl Resident {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// A part's buffer, and where the part begins in it.
    pub fn part(&self, index: usize) -> Option<(&Buffer, usize)> {
        self.parts.get(index).map(|(buffer, offset)| (&**buffer, *offset))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // Commands under way hold the buffers themselves, and each buffer its bytes.
        self.device.unregister_buffers(self.parts.iter().map(|(buffer, _)| &**buffer));
    }
}

impl Residence {
    /// The parts on this device.
    pub fn on(&self, device: &MetalDevice, parts: &[&Bytes]) -> Result<Arc<Resident>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resident) = held.as_ref().filter(|resident| resident.device.id() == device.id()) {
            return Ok(resident.clone());
        }
        let buffer =
            |(i, part): (usize, &&Bytes)| buffer_of(device, part, if i == 0 { WIDE } else { ELEMENT });
        let parts = parts.iter().enumerate().map(buffer).collect::<Result<Vec<_>>>()?;
        device.register_buffers(parts.iter().map(|(buffer, _)| &**buffer));
        let resident = Arc::new(Resident { device: device.clone(), parts });
        *held = Some(resident.clone());
        Ok(resident)
    }
}

fn buffer_of(device: &MetalDevice, part: &Bytes, alignment: usize) -> Result<(Arc<Buffer>, usize)> {
    let address = part.as_ptr().addr();
    if address.is_multiple_of(alignment)
        && let Some(found) = over_pages(device, part)
    {
        return Ok(found);
    }
    Ok((device.new_buffer_with_data(part)?, 0))
}

/// A buffer over the pages of a part.
fn over_pages(device: &MetalDevice, part: &Bytes) -> Option<(Arc<Buffer>, usize)> {
    // SAFETY: asks for a constant of the system.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let offset = part.as_ptr().addr() % page;
    let first = NonNull::new(part.as_ptr().wrapping_sub(offset).cast_mut().cast::<c_void>())?;
    let length = (offset + part.len()).next_multiple_of(page);
    // The block owns the bytes: they are given back when the system gives up the buffer.
    let owner = part.clone();
    let release = RcBlock::new(move |_: NonNull<c_void>, _: usize| {
        let _ = &owner;
    });
    let options = MTLResourceOptions::StorageModeShared | MTLResourceOptions::HazardTrackingModeUntracked;
    // SAFETY: every page in the range holds a byte of the part, so all are mapped for as long as the buffer keeps the part
    // alive. Kernels only read them.
    let raw = unsafe {
        device.metal_device().as_ref().newBufferWithBytesNoCopy_length_options_deallocator(
            first,
            length,
            options,
            Some(&release),
        )
    }?;
    Some((Arc::new(Buffer::new(raw)), offset))
}
