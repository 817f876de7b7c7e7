import CThalweg
import ThalwegRunner
import ThalwegCore

@_cdecl("tw_solver_create")
public func solverCreate(_ sentence: UnsafePointer<CChar>?, _ out: UnsafeMutablePointer<OpaquePointer?>?) -> tw_status {
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    out.pointee = nil
    out.pointee = try Handles.make(try SolverObject(try string(sentence, "sentence")), .solver)
  }
}

@_cdecl("tw_solver_destroy")
public func solverDestroy(_ p: OpaquePointer?) -> tw_status {
  status { () throws(Failure) in try Handles.destroy(p, .solver) }
}

private func solver<R>(_ p: OpaquePointer?, _ body: (SolverObject) throws(Failure) -> R) throws(Failure) -> R {
  try Handles.with(p, .solver, SolverObject.self, body)
}

@_cdecl("tw_solver_copy")
public func solverCopy(_ p: OpaquePointer?, _ out: UnsafeMutablePointer<OpaquePointer?>?) -> tw_status {
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    out.pointee = nil
    let copy = try solver(p) { (s) throws(Failure) in try s.copy() }
    out.pointee = try Handles.make(copy, .solver)
  }
}

@_cdecl("tw_solver_begin")
public func solverBegin(_ p: OpaquePointer?, _ inputs: UnsafePointer<tw_tensor>?, _ count: Int) -> tw_status {
  status { () throws(Failure) in
    try solver(p) { (s) throws(Failure) in try s.begin(try operands(inputs, count, s.method.inputs)) }
  }
}

/// Bytes of the first tw_solver_request that was published.
private let firstRequest =
  (MemoryLayout<tw_solver_request>.offset(of: \.wanted_count) ?? 0) + MemoryLayout<Int>.size

/// Tells the host what is asked for, or how the run ended; returns TW_MORE or TW_OK.
private func write(_ s: SolverObject, to request: UnsafeMutablePointer<tw_solver_request>) throws(Failure) -> Int {
  let r = s.request, ending = s.ending
  try fill(
    request, "request",
    tw_solver_request(
      struct_size: 0, kind: Int32(r?.kind ?? -1), outcome: Int32(ending.rawValue),
      name: Interned.c(r.map { s.method.asks[$0.kind].name } ?? ""), outcome_name: Interned.c(ending.name),
      tag: r?.tag ?? 0, given: r.map { UnsafePointer($0.tensors) }, given_count: r?.given ?? 0,
      wanted: r.map { UnsafePointer($0.tensors + $0.given) }, wanted_count: r?.wanted ?? 0))
  return r == nil ? Status.ok : Status.more
}

private func usable(_ request: UnsafeMutablePointer<tw_solver_request>?) throws(Failure)
  -> UnsafeMutablePointer<tw_solver_request>
{
  guard let request else { throw null("request") }
  _ = try structSize(request, "request", atLeast: firstRequest)
  return request
}

@_cdecl("tw_solver_next")
public func solverNext(_ p: OpaquePointer?, _ request: UnsafeMutablePointer<tw_solver_request>?) -> tw_status {
  statusCode { () throws(Failure) in
    let request = try usable(request)
    return try solver(p) { (s) throws(Failure) in
      try s.next()
      return try write(s, to: request)
    }
  }
}

@_cdecl("tw_solver_waiting")
public func solverWaiting(_ p: OpaquePointer?, _ request: UnsafeMutablePointer<tw_solver_request>?) -> tw_status {
  statusCode { () throws(Failure) in
    let request = try usable(request)
    return try solver(p) { (s) throws(Failure) in try write(s, to: request) }
  }
}

@_cdecl("tw_solver_tensor")
public func solverTensor(_ p: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ tensor: UnsafeMutablePointer<tw_tensor>?)
  -> tw_status
{
  status { () throws(Failure) in
    let name = try string(name, "name")
    guard let tensor else { throw null("tensor") }
    try solver(p) { (s) throws(Failure) in tensor.pointee = try s.tensor(name) }
  }
}

@_cdecl("tw_solver_number")
public func solverNumber(_ p: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ out: UnsafeMutablePointer<Double>?)
  -> tw_status
{
  status { () throws(Failure) in
    let name = try string(name, "name")
    guard let out else { throw null("out") }
    try solver(p) { (s) throws(Failure) in out.pointee = try s.number(name) }
  }
}

@_cdecl("tw_solver_save")
public func solverSave(
  _ p: OpaquePointer?, _ buffer: UnsafeMutableRawPointer?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tw_status {
  status { () throws(Failure) in
    try solver(p) { (s) throws(Failure) in
      try deliver(
        "the run", buffer, capacity, needed, size: { () throws(Failure) in try s.saveSize() },
        save: { (room, write) throws(Failure) in try s.save(room, write) })
    }
  }
}

@_cdecl("tw_solver_load")
public func solverLoad(_ p: OpaquePointer?, _ data: UnsafeRawPointer?, _ size: Int) -> tw_status {
  status { () throws(Failure) in
    try solver(p) { (s) throws(Failure) in
      guard let data else { throw null("data") }
      guard size >= 0 else { throw Failure(Status.format, "not a usable saved run: its size overflows") }
      try s.load(UnsafeRawBufferPointer(start: data, count: size))
    }
  }
}
