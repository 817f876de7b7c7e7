import CThalweg
import ThalwegRunner
import ThalwegCore

/// The caller's struct_size, which stands first in every struct that may grow; it is checked. `least`: bytes that every
/// caller has.
func structSize<T>(
  _ out: UnsafeMutablePointer<T>, _ name: String, atLeast least: Int = 2 * MemoryLayout<Int>.size
) throws(Failure) -> Int {
  let size = UnsafeRawPointer(out).load(as: Int.self)
  guard size >= least, size <= 1 << 16 else {
    throw Failure(Status.argument, "`\(name)->struct_size` is \(UInt(bitPattern: size)); set it to sizeof(\(T.self))")
  }
  return size
}

/// Copies a struct to the caller, as much of it as the caller's struct_size says; what the caller has beyond it stays.
func fill<T>(_ out: UnsafeMutablePointer<T>?, _ name: String, _ value: T) throws(Failure) {
  guard let out else { throw null(name) }
  let raw = UnsafeMutableRawPointer(out), size = try structSize(out, name)
  withUnsafeBytes(of: value) { bytes in
    guard let p = bytes.baseAddress else { return }
    raw.copyMemory(from: p, byteCount: min(size, bytes.count))
  }
  raw.storeBytes(of: size, as: Int.self)
}

private func describe(_ r: Registered) -> tw_method_info {
  let m = r.method
  return tw_method_info(
    struct_size: 0, name: Interned.c(m.name), kind: Interned.c(m.kind.rawValue), summary: Interned.c(m.summary),
    rule: Interned.c(m.rule),
    source: Interned.c(m.source), sentence: Interned.c(r.sentence), requests: Interned.c(m.publicRequests),
    parameter_count: m.parameters.count,
    state_count: m.slots.count, input_count: m.inputs.count, request_count: m.asks.count)
}

private func method(_ name: UnsafePointer<CChar>?) throws(Failure) -> Registered {
  try Registry.described(try string(name, "name"))
}

@_cdecl("tw_method_count")
public func methodCount() -> Int { Registry.all.count }

@_cdecl("tw_method_at")
public func methodAt(_ index: Int, _ info: UnsafeMutablePointer<tw_method_info>?) -> tw_status {
  status { () throws(Failure) in
    guard index >= 0, index < Registry.all.count else {
      throw Failure(Status.argument, "`index` must be below \(Registry.all.count), got \(UInt(bitPattern: index))")
    }
    try fill(info, "info", describe(Registry.all[index]))
  }
}

@_cdecl("tw_method_find")
public func methodFind(_ name: UnsafePointer<CChar>?, _ info: UnsafeMutablePointer<tw_method_info>?) -> tw_status {
  status { () throws(Failure) in try fill(info, "info", describe(try method(name))) }
}

@_cdecl("tw_method_parameter")
public func methodParameter(
  _ name: UnsafePointer<CChar>?, _ index: Int, _ info: UnsafeMutablePointer<tw_parameter_info>?
) -> tw_status {
  status { () throws(Failure) in
    let m = try method(name).method
    guard index >= 0, index < m.parameters.count else {
      throw Failure(Status.argument, "`index` must be below \(m.parameters.count), got \(UInt(bitPattern: index))")
    }
    let p = m.parameters[index]
    var choices = ""
    if case .choice(let words) = p.kind { choices = words.joined(separator: "|") }
    try fill(
      info, "info",
      tw_parameter_info(
        struct_size: 0, name: Interned.c(p.name), meaning: Interned.c(p.meaning), type: p.code,
        required: p.standard == nil ? 1 : 0,
        optional: p.optional ? 1 : 0, min_open: p.minimumOpen ? 1 : 0, max_open: p.maximumOpen ? 1 : 0,
        live: p.live ? 1 : 0,
        default_text: Interned.c(p.standard.map { p.write($0) } ?? ""), choices: Interned.c(choices), min: p.minimum,
        max: p.maximum))
  }
}

@_cdecl("tw_method_state")
public func methodState(_ name: UnsafePointer<CChar>?, _ index: Int, _ info: UnsafeMutablePointer<tw_state_slot_info>?)
  -> tw_status
{
  status { () throws(Failure) in
    let m = try method(name).method
    guard index >= 0, index < m.slots.count else {
      throw Failure(Status.argument, "`index` must be below \(m.slots.count), got \(UInt(bitPattern: index))")
    }
    try fill(
      info, "info",
      tw_state_slot_info(
        struct_size: 0, name: Interned.c(m.slots[index].name), meaning: Interned.c(m.slots[index].meaning)))
  }
}

@_cdecl("tw_method_input")
public func methodInput(_ name: UnsafePointer<CChar>?, _ index: Int, _ info: UnsafeMutablePointer<tw_input_info>?)
  -> tw_status
{
  status { () throws(Failure) in
    let m = try method(name).method
    guard index >= 0, index < m.inputs.count else {
      throw Failure(Status.argument, "`index` must be below \(m.inputs.count), got \(UInt(bitPattern: index))")
    }
    try fill(info, "info", describe(m.inputs[index]))
  }
}

private func describe(_ i: Input) -> tw_input_info {
  tw_input_info(
    struct_size: 0, name: Interned.c(i.name), meaning: Interned.c(i.meaning), shape: Interned.c(i.shape),
    optional: i.optional ? 1 : 0,
    integer: i.integer ? 1 : 0, differentiable: i.differentiable ? 1 : 0, result: i.result ? 1 : 0)
}

func describe(_ a: RequestKind) -> tw_request_info {
  tw_request_info(
    struct_size: 0, name: Interned.c(a.name), meaning: Interned.c(a.meaning), given_count: a.given.count,
    wanted_count: a.wanted.count, takes_nonfinite: a.takesNonfinite ? 1 : 0)
}
/// The tensor at `tensor` of a request: the given ones, then the wanted ones.
func describe(_ a: RequestKind, _ tensor: Int) throws(Failure) -> tw_input_info {
  let all = a.given + a.wanted
  guard tensor >= 0, tensor < all.count else {
    throw Failure(Status.argument, "`tensor` must be below \(all.count), got \(UInt(bitPattern: tensor))")
  }
  return describe(all[tensor])
}

private func ask(_ name: UnsafePointer<CChar>?, _ index: Int) throws(Failure) -> RequestKind {
  let m = try method(name).method
  guard index >= 0, index < m.asks.count else {
    throw Failure(Status.argument, "`index` must be below \(m.asks.count), got \(UInt(bitPattern: index))")
  }
  return m.asks[index]
}

@_cdecl("tw_method_request")
public func methodRequest(
  _ name: UnsafePointer<CChar>?, _ index: Int, _ info: UnsafeMutablePointer<tw_request_info>?
) -> tw_status {
  status { () throws(Failure) in
    try fill(info, "info", describe(try ask(name, index)))
  }
}

@_cdecl("tw_method_request_tensor")
public func methodRequestTensor(
  _ name: UnsafePointer<CChar>?, _ index: Int, _ tensor: Int, _ info: UnsafeMutablePointer<tw_input_info>?
) -> tw_status {
  status { () throws(Failure) in
    try fill(info, "info", describe(try ask(name, index), tensor))
  }
}
