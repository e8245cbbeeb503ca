//! Running launches on a device.

use super::{Argument, Launch, SOURCE, memory::Resident};
use candle_core::{DType, Error, MetalDevice, MetalError, MetalStorage, Result, backend::BackendStorage};
use candle_metal_kernels::metal::{Buffer, ComputePipeline, Library};
use objc2_metal::MTLSize;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// Bytes that a command may carry itself; more are put into a buffer.
const LARGEST_BYTES: usize = 4096;

/// What vector loads of inputs are aligned to.
const INPUT_ALIGNMENT: usize = 16;

/// The library and the pipelines of a device, compiled once.
struct Compiled {
    library: Library,
    pipelines: HashMap<String, ComputePipeline>,
}

/// The pipeline of a kernel.
fn pipeline(device: &MetalDevice, kernel: &str) -> Result<ComputePipeline> {
    static DEVICES: OnceLock<Mutex<HashMap<u64, Compiled>>> = OnceLock::new();
    let mut devices = DEVICES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let raw = device.metal_device();
    let id = raw.registry_id();
    let compiled = match devices.entry(id) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let library = raw.new_library_with_source(SOURCE, None).map_err(MetalError::from)?;
            entry.insert(Compiled { library, pipelines: HashMap::new() })
        }
    };
    if let Some(pipeline) = compiled.pipelines.get(kernel) {
        return Ok(pipeline.clone());
    }
    let function = compiled.library.get_function(kernel, None).map_err(MetalError::from)?;
    let pipeline = raw.new_compute_pipeline_state_with_function(&function).map_err(MetalError::from)?;
    compiled.pipelines.insert(kernel.into(), pipeline.clone());
    Ok(pipeline)
}

/// An f32 or f16 input: its storage, and the element at which it begins.
pub(crate) type Input<'a> = (&'a MetalStorage, usize);

/// Encodes the launches of an op, whose output has `count` f32 values. Nothing waits for the device.
pub(crate) fn run(
    op: &str,
    device: &MetalDevice,
    launches: &[Launch],
    parts: &[Arc<Resident>],
    inputs: &[Input],
    count: usize,
) -> Result<MetalStorage> {
    let output = device.new_buffer(count, DType::F32, op)?;
    for launch in launches {
        let refuse = |what: &str| Error::Msg(format!("{op}: {} {what}", launch.kernel)).bt();
        // A grid of nothing is an error of Metal's.
        if launch.groups.contains(&0) {
            continue;
        }
        let pipeline = pipeline(device, &launch.kernel)?;
        if launch.threads > pipeline.max_total_threads_per_threadgroup() {
            return Err(refuse("takes more threads than this device gives it"));
        }
        // Made before the encoder is asked for, which other commands wait for.
        let uploaded = launch
            .arguments
            .iter()
            .map(|(_, argument)| match argument {
                Argument::Bytes(bytes) if bytes.len() > LARGEST_BYTES => {
                    device.new_buffer_with_data(bytes).map(Some)
                }
                _ => Ok(None),
            })
            .collect::<Result<Vec<_>>>()?;
        let commands = device.command_encoder()?;
        let encoder = commands.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        for (i, (name, argument)) in launch.arguments.iter().enumerate() {
            match argument {
                Argument::Part(part) => {
                    let (buffer, offset) = part_of(parts, *part).ok_or_else(|| refuse("lacks a part"))?;
                    encoder.set_input_buffer(i, Some(buffer), offset);
                }
                Argument::Input(index) => {
                    let (storage, start) = inputs[*index];
                    let offset = start * storage.dtype().size_in_bytes();
                    if *name == "x" && !aligned(launch, offset) {
                        return Err(refuse(&format!("needs `{name}` at a multiple of 16 bytes")));
                    }
                    encoder.set_input_buffer(i, Some(storage.buffer()), offset);
                }
                Argument::Written(index) => {
                    let (storage, start) = inputs[*index];
                    let offset = start * storage.dtype().size_in_bytes();
                    encoder.set_output_buffer(i, Some(storage.buffer()), offset);
                }
                Argument::Output => encoder.set_output_buffer(i, Some(&output), 0),
                Argument::Bytes(bytes) => match &uploaded[i] {
                    Some(buffer) => encoder.set_input_buffer(i, Some(buffer), 0),
                    None => encoder.set_bytes_directly(i, bytes.len(), bytes.as_ptr().cast()),
                },
            }
        }
        for (i, bytes) in launch.shared.iter().enumerate() {
            encoder.set_threadgroup_memory_length(i, *bytes);
        }
        let [width, height, depth] = launch.groups;
        encoder.dispatch_thread_groups(
            MTLSize { width, height, depth },
            MTLSize { width: launch.threads, height: 1, depth: 1 },
        );
    }
    Ok(MetalStorage::new(output, device.clone(), count, DType::F32))
}

/// A part of matrices whose parts are counted on.
fn part_of(matrices: &[Arc<Resident>], mut index: usize) -> Option<(&Buffer, usize)> {
    for matrix in matrices {
        if index < matrix.len() {
            return matrix.part(index);
        }
        index -= matrix.len();
    }
    None
}

/// Whether a product's input lies as its vector loads need it.
fn aligned(launch: &Launch, offset: usize) -> bool {
    offset.is_multiple_of(INPUT_ALIGNMENT)
        || !launch.kernel.starts_with("gemv")
        || launch.kernel.contains("_1_")
}
