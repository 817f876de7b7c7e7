import COpenBLAS
import CThalweg
import ThalwegRunner
import ThalwegCore

@_cdecl("tw_abi_version")
public func abiVersion() -> UInt32 { UInt32(TW_ABI_VERSION) }

@_cdecl("tw_version")
public func version() -> UnsafePointer<CChar>? { Interned.c(release) }

@_cdecl("tw_build_info")
public func buildInfo() -> UnsafePointer<CChar>? {
  Interned.c(
    "thalweg \(release), \(String(cString: twi_instruction_set())), \(String(cString: twb_description()))")
}

@_cdecl("tw_status_name")
public func statusName(_ s: tw_status) -> UnsafePointer<CChar>? {
  let names: [Int: String] = [
    Int(TW_OK): "TW_OK", Int(TW_MORE): "TW_MORE", Int(TW_SKIPPED): "TW_SKIPPED",
    Int(TW_ERROR_INTERNAL): "TW_ERROR_INTERNAL",
    Int(TW_ERROR_MEMORY): "TW_ERROR_MEMORY", Int(TW_ERROR_ARGUMENT): "TW_ERROR_ARGUMENT",
    Int(TW_ERROR_HANDLE): "TW_ERROR_HANDLE",
    Int(TW_ERROR_BUSY): "TW_ERROR_BUSY", Int(TW_ERROR_COUNT): "TW_ERROR_COUNT", Int(TW_ERROR_SYNTAX): "TW_ERROR_SYNTAX",
    Int(TW_ERROR_METHOD): "TW_ERROR_METHOD", Int(TW_ERROR_NAME): "TW_ERROR_NAME", Int(TW_ERROR_TYPE): "TW_ERROR_TYPE",
    Int(TW_ERROR_RANGE): "TW_ERROR_RANGE", Int(TW_ERROR_DTYPE): "TW_ERROR_DTYPE", Int(TW_ERROR_SHAPE): "TW_ERROR_SHAPE",
    Int(TW_ERROR_LAYOUT): "TW_ERROR_LAYOUT", Int(TW_ERROR_OVERLAP): "TW_ERROR_OVERLAP",
    Int(TW_ERROR_SEQUENCE): "TW_ERROR_SEQUENCE",
    Int(TW_ERROR_NEEDS): "TW_ERROR_NEEDS", Int(TW_ERROR_NONFINITE): "TW_ERROR_NONFINITE",
    Int(TW_ERROR_NUMERIC): "TW_ERROR_NUMERIC",
    Int(TW_ERROR_FORMAT): "TW_ERROR_FORMAT", Int(TW_ERROR_VERSION): "TW_ERROR_VERSION",
    Int(TW_ERROR_MISMATCH): "TW_ERROR_MISMATCH",
    Int(TW_ERROR_FILE): "TW_ERROR_FILE", Int(TW_ERROR_SPACE): "TW_ERROR_SPACE",
    Int(TW_ERROR_UNSUPPORTED): "TW_ERROR_UNSUPPORTED",
  ]
  return Interned.c(names[Int(s)] ?? "unknown")
}

@_cdecl("tw_last_error")
public func lastError() -> UnsafePointer<CChar>? { twi_get_error() }

@_cdecl("tw_set_num_threads")
public func setNumThreads(_ count: Int32) -> tw_status {
  status { () throws(Failure) in
    try setThreads(Int(count))
  }
}

@_cdecl("tw_get_num_threads")
public func getNumThreads() -> Int32 { Int32(Threads.count) }

@_cdecl("tw_set_executor")
public func setExecutor(_ executor: tw_executor?, _ context: UnsafeMutableRawPointer?) -> tw_status {
  Threads.setExecutor(executor, context)
  return tw_status(TW_OK)
}

@_cdecl("tw_set_allocator")
public func setAllocator(_ allocate: tw_allocate?, _ deallocate: tw_deallocate?, _ context: UnsafeMutableRawPointer?)
  -> tw_status
{
  status { () throws(Failure) in
    guard (allocate == nil) == (deallocate == nil) else {
      throw Failure(Status.argument, "`allocate` and `deallocate` must both be given, or both be NULL")
    }
    Allocator.process = Allocator(allocate, deallocate, context)
  }
}

@_cdecl("tw_use_services")
public func useServices(_ services: UnsafePointer<tw_services>?) -> tw_status {
  status { () throws(Failure) in
    guard let services else { return twi_set_services(tw_services()) }
    let size = services.pointee.struct_size
    guard size >= MemoryLayout<tw_services>.size, size <= 1 << 16 else {
      throw Failure(
        Status.argument, "`services->struct_size` is \(UInt(bitPattern: size)); set it to sizeof(tw_services)")
    }
    guard (services.pointee.allocate == nil) == (services.pointee.deallocate == nil) else {
      throw Failure(Status.argument, "`allocate` and `deallocate` must both be given, or both be NULL")
    }
    twi_set_services(services.pointee)
  }
}

@_cdecl("tw_set_log")
public func setLog(_ log: tw_log?, _ context: UnsafeMutableRawPointer?) -> tw_status {
  Log.set(log, context)
  return tw_status(TW_OK)
}

@_cdecl("tw_random_normal")
public func randomNormal(
  _ seed: UInt64, _ stream: UInt32, _ step: UInt64, _ tensor: UInt32, _ offset: UInt64,
  _ out: UnsafeMutablePointer<Double>?, _ count: Int
) -> tw_status {
  status { () throws(Failure) in
    guard count >= 0, offset <= UInt64(Int.max / 4), count <= Int.max / 16 else {
      throw Failure(Status.range, "offset or count out of range")
    }
    guard count > 0 else { return }
    guard let out else { throw null("out") }
    let key = Random.key(seed: seed, stream: stream, step: step, tensor: tensor)
    for i in 0..<count { out[i] = Random.normal(key, Int(offset) + i) }
  }
}
