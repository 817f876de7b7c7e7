import CThalweg
import ThalwegRunner
import ThalwegCore

private func with<R>(_ p: OpaquePointer?, _ body: (Optimizer) throws(Failure) -> R) throws(Failure) -> R {
  try Handles.with(p, .optimizer, Optimizer.self, body)
}
/// The same for what a host calls at every step.
func stepping<R>(_ p: OpaquePointer?, _ body: (Optimizer) throws(Failure) -> R) throws(Failure) -> R {
  try Handles.with(p, .optimizer, Optimizer.self, stepping: true, body)
}

private func read(_ p: UnsafePointer<tw_options>?) throws(Failure) -> Options {
  var o = Options()
  guard let p else { return o }
  let size = p.pointee.struct_size
  guard size >= MemoryLayout<Int>.size, size <= 1 << 16 else {
    throw Failure(Status.argument, "`options->struct_size` is \(size); call tw_options_init first")
  }
  var c = tw_options()
  defaults(&c)
  withUnsafeMutableBytes(of: &c) { bytes in
    bytes.baseAddress?.copyMemory(from: UnsafeRawPointer(p), byteCount: min(Int(size), bytes.count))
  }
  guard let state = Options.StateFormat(rawValue: c.state_dtype) else {
    throw Failure(Status.range, "`state_dtype` must be TW_STATE_F32, _BF16 or _Q8, got \(c.state_dtype)")
  }
  guard let master = Options.Master(rawValue: c.master) else {
    throw Failure(Status.range, "`master` must be a TW_MASTER_ value, got \(c.master)")
  }
  guard let policy = Options.NonFinite(rawValue: c.nonfinite) else {
    throw Failure(Status.range, "`nonfinite` must be a TW_NONFINITE_ value, got \(c.nonfinite)")
  }
  func flag(_ x: Int32, _ name: String) throws(Failure) -> Bool {
    guard x == 0 || x == 1 else { throw Failure(Status.range, "`\(name)` must be 0 or 1, got \(x)") }
    return x == 1
  }
  (o.state, o.master, o.nonFinite) = (state, master, policy)
  o.maximize = try flag(c.maximize, "maximize")
  o.zeroGradients = try flag(c.zero_gradients, "zero_gradients")
  o.consumeGradients = try flag(c.consume_gradients, "consume_gradients")
  o.gradientScale = c.gradient_scale
  o.seed = c.seed
  return o
}

private func defaults(_ o: UnsafeMutablePointer<tw_options>) {
  o.pointee = tw_options(
    struct_size: MemoryLayout<tw_options>.size, state_dtype: Int32(TW_STATE_F32), master: Int32(TW_MASTER_NONE),
    nonfinite: Int32(TW_NONFINITE_PROPAGATE),
    maximize: 0, zero_gradients: 0, consume_gradients: 0, gradient_scale: 1, seed: 0)
}

@_cdecl("tw_options_init")
public func optionsInit(_ options: UnsafeMutablePointer<tw_options>?, _ size: Int) -> tw_status {
  status { () throws(Failure) in
    guard let options else { throw null("options") }
    guard size >= MemoryLayout<Int>.size, size <= 1 << 16 else {
      throw Failure(Status.argument, "`struct_size` must be sizeof(tw_options), got \(UInt(bitPattern: size))")
    }
    var o = tw_options()
    defaults(&o)
    o.struct_size = size
    withUnsafeBytes(of: o) { b in
      if let p = b.baseAddress { UnsafeMutableRawPointer(options).copyMemory(from: p, byteCount: min(size, b.count)) }
    }
  }
}

@_cdecl("tw_optimizer_create")
public func optimizerCreate(
  _ sentence: UnsafePointer<CChar>?, _ options: UnsafePointer<tw_options>?, _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> tw_status {
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    out.pointee = nil
    let o = try Optimizer(try string(sentence, "sentence"), try read(options), Allocator.current)
    out.pointee = try Handles.make(o, .optimizer)
  }
}

@_cdecl("tw_optimizer_destroy")
public func optimizerDestroy(_ p: OpaquePointer?) -> tw_status {
  status { () throws(Failure) in try Handles.destroy(p, .optimizer) }
}

@_cdecl("tw_optimizer_add_parameters")
public func optimizerAddParameters(
  _ p: OpaquePointer?, _ parameters: UnsafePointer<tw_tensor>?, _ count: Int,
  _ names: UnsafePointer<UnsafePointer<CChar>?>?, _ group: UnsafePointer<CChar>?
) -> tw_status {
  optimizerAddGroup(p, parameters, count, names, group, nil, nil, 0)
}

@_cdecl("tw_optimizer_rebind_parameters")
public func optimizerRebindParameters(_ p: OpaquePointer?, _ parameters: UnsafePointer<tw_tensor>?, _ count: Int)
  -> tw_status
{
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      try o.rebindParameters(try views(parameters, count, "parameter", expected: o.count))
    }
  }
}

/// The tensors of an answer, or gradients for the next step.
func gradients(_ o: Optimizer, _ p: UnsafePointer<tw_tensor>?, _ count: Int) throws(Failure) -> [View] {
  guard o.count > 0 else { throw Failure(Status.sequence, "bind parameters before gradients") }
  return try views(p, count, o.waiting?.kind.noun ?? "gradient", expected: o.count)
}

@_cdecl("tw_optimizer_bind_gradients")
public func optimizerBindGradients(_ p: OpaquePointer?, _ gradients: UnsafePointer<tw_tensor>?, _ count: Int)
  -> tw_status
{
  status { () throws(Failure) in
    try stepping(p) { (o) throws(Failure) in
      try o.bindGradients(try ThalwegABI.gradients(o, gradients, count))
    }
  }
}

@_cdecl("tw_optimizer_bind_shadow")
public func optimizerBindShadow(_ p: OpaquePointer?, _ shadows: UnsafePointer<tw_tensor>?, _ count: Int) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in try o.bindShadow(try views(shadows, count, "shadow", expected: o.count)) }
  }
}

@_cdecl("tw_optimizer_parameter_count")
public func optimizerParameterCount(_ p: OpaquePointer?) -> Int {
  do throws(Failure) { return try with(p) { (o) throws(Failure) in o.count } } catch {
    _ = report(error)
    return 0
  }
}

@_cdecl("tw_optimizer_step")
public func optimizerStep(_ p: OpaquePointer?) -> tw_status {
  statusCode { () throws(Failure) in try stepping(p) { (o) throws(Failure) in try o.stepOnce() } }
}

@_cdecl("tw_optimizer_step_with")
public func optimizerStepWith(_ p: OpaquePointer?, _ gradients: UnsafePointer<tw_tensor>?, _ count: Int) -> tw_status {
  statusCode { () throws(Failure) in
    try stepping(p) { (o) throws(Failure) in
      try o.bindGradients(try ThalwegABI.gradients(o, gradients, count))
      return try o.stepOnce()
    }
  }
}

/// Bytes of the first tw_request that was published: every caller has these fields. Later ones stand behind them.
private let firstRequest = (MemoryLayout<tw_request>.offset(of: \.probe_count) ?? 0) + MemoryLayout<Int>.size

/// Tells the host what is asked for; nothing, between steps.
private func write(_ r: Request?, of o: Optimizer, to request: UnsafeMutablePointer<tw_request>) throws(Failure) {
  let r = r ?? Request(), probe = o.probeTensors()
  try fill(
    request, "request",
    tw_request(
      struct_size: 0, kind: r.kind.rawValue, pass: Int32(truncatingIfNeeded: r.pass), tag: r.tag, index: Int64(r.index),
      count: Int64(r.count), loss: .nan, probe: probe.map { UnsafePointer($0) },
      probe_count: probe == nil ? 0 : o.count,
      gradients_stay: 0))
}
private func stays(_ request: UnsafeMutablePointer<tw_request>) throws(Failure) -> Bool {
  let end = (MemoryLayout<tw_request>.offset(of: \.gradients_stay) ?? 0) + MemoryLayout<Int32>.size
  return try structSize(request, "request") >= end && request.pointee.gradients_stay != 0
}

private func usable(_ request: UnsafeMutablePointer<tw_request>?) throws(Failure) -> UnsafeMutablePointer<tw_request> {
  guard let request else { throw null("request") }
  _ = try structSize(request, "request", atLeast: firstRequest)
  return request
}

@_cdecl("tw_optimizer_next")
public func optimizerNext(_ p: OpaquePointer?, _ request: UnsafeMutablePointer<tw_request>?) -> tw_status {
  statusCode { () throws(Failure) in
    let request = try usable(request)
    return try stepping(p) { (o) throws(Failure) in
      let (asked, code) = try o.next(loss: request.pointee.loss, stays: try stays(request))
      try write(asked, of: o, to: request)
      return code
    }
  }
}

@_cdecl("tw_optimizer_waiting")
public func optimizerWaiting(_ p: OpaquePointer?, _ request: UnsafeMutablePointer<tw_request>?) -> tw_status {
  statusCode { () throws(Failure) in
    let request = try usable(request)
    return try stepping(p) { (o) throws(Failure) in
      o.takePlace()
      try write(o.waiting, of: o, to: request)
      return o.waiting == nil ? Status.ok : Status.more
    }
  }
}

@_cdecl("tw_optimizer_set_reducer")
public func optimizerSetReducer(
  _ p: OpaquePointer?, _ reducer: tw_reducer?, _ context: UnsafeMutableRawPointer?, _ held: Int32
) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      guard let reducer else { return try o.setRanks(nil) }
      guard held >= 0, let shards = Ranks.Shards(rawValue: held & 0xff) else {
        throw Failure(
          Status.argument,
          "`shards` must be TW_SHARDS_TENSORS (1) or TW_SHARDS_ELEMENTS (2), with the rank from bit 8 on, got \(held)")
      }
      try o.setRanks(Ranks(reducer, context, shards, number: Int(held >> 8)))
    }
  }
}

@_cdecl("tw_optimizer_cancel")
public func optimizerCancel(_ p: OpaquePointer?) -> tw_status {
  status { () throws(Failure) in try stepping(p) { (o) throws(Failure) in try o.cancel() } }
}

private func matrix(_ t: UnsafePointer<tw_tensor>?, _ what: String) throws(Failure) -> HostMatrix? {
  guard let t else { return nil }
  return try HostMatrix(try View(t.pointee, what), what)
}

@_cdecl("tw_optimizer_answer_matrix")
public func optimizerAnswerMatrix(
  _ p: OpaquePointer?, _ first: UnsafePointer<tw_tensor>?, _ second: UnsafePointer<tw_tensor>?
) -> tw_status {
  status { () throws(Failure) in
    try stepping(p) { (o) throws(Failure) in
      guard first != nil || second != nil else { throw null("first") }
      try o.answer(try matrix(first, "first"), try matrix(second, "second"))
    }
  }
}

@_cdecl("tw_optimizer_answer_samples")
public func optimizerAnswerSamples(_ p: OpaquePointer?, _ gradients: UnsafePointer<tw_tensor>?, _ count: Int)
  -> tw_status
{
  status { () throws(Failure) in
    try stepping(p) { (o) throws(Failure) in
      guard count >= 0, count <= 1 << 32 else {
        throw Failure(Status.count, "count must be 0 to 2^32, got \(UInt(bitPattern: count))")
      }
      guard count == 0 || gradients != nil else { throw null("gradients") }
      try o.answer(samples: try samples(gradients, count))
    }
  }
}

@_cdecl("tw_optimizer_observe")
public func optimizerObserve(_ p: OpaquePointer?, _ what: UnsafePointer<CChar>?, _ value: Double) -> tw_status {
  status { () throws(Failure) in
    try stepping(p) { (o) throws(Failure) in try o.observe(try string(what, "what"), value) }
  }
}

@_cdecl("tw_optimizer_command")
public func optimizerCommand(_ p: OpaquePointer?, _ command: UnsafePointer<CChar>?) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in try o.command(try string(command, "command")) }
  }
}

@_cdecl("tw_optimizer_set_mode")
public func optimizerSetMode(_ p: OpaquePointer?, _ mode: Int32) -> tw_status {
  status { () throws(Failure) in
    guard mode == Int32(TW_MODE_TRAIN) || mode == Int32(TW_MODE_EVAL) else {
      throw Failure(Status.range, "`mode` must be TW_MODE_TRAIN or TW_MODE_EVAL, got \(mode)")
    }
    try with(p) { (o) throws(Failure) in try o.setMode(evaluate: mode == Int32(TW_MODE_EVAL)) }
    if mode == Int32(TW_MODE_EVAL) { try Handles.depot(p, .optimizer, twi_depot_trim) }
  }
}

private func group(_ o: Optimizer, _ name: UnsafePointer<CChar>?) throws(Failure) -> Int? {
  name == nil ? nil : try o.group(try string(name, "group"))
}

@_cdecl("tw_optimizer_get_number")
public func optimizerGetNumber(
  _ p: OpaquePointer?, _ groupName: UnsafePointer<CChar>?, _ path: UnsafePointer<CChar>?,
  _ out: UnsafeMutablePointer<Double>?
) -> tw_status {
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    try with(p) { (o) throws(Failure) in
      out.pointee = try o.getNumber(try group(o, groupName) ?? 0, try string(path, "path"))
    }
  }
}

@_cdecl("tw_optimizer_set_number")
public func optimizerSetNumber(
  _ p: OpaquePointer?, _ groupName: UnsafePointer<CChar>?, _ path: UnsafePointer<CChar>?, _ value: Double
) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in try o.setNumber(try group(o, groupName), try string(path, "path"), value) }
  }
}

@_cdecl("tw_optimizer_set_text")
public func optimizerSetText(
  _ p: OpaquePointer?, _ groupName: UnsafePointer<CChar>?, _ path: UnsafePointer<CChar>?, _ value: UnsafePointer<CChar>?
) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      try o.setText(try group(o, groupName), try string(path, "path"), try string(value, "value"))
    }
  }
}

@_cdecl("tw_optimizer_get_text")
public func optimizerGetText(
  _ p: OpaquePointer?, _ groupName: UnsafePointer<CChar>?, _ path: UnsafePointer<CChar>?,
  _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int,
  _ needed: UnsafeMutablePointer<Int>?
) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      try deliver(try o.getText(try group(o, groupName) ?? 0, try string(path, "path")), buffer, capacity, needed)
    }
  }
}

@_cdecl("tw_optimizer_sentence")
public func optimizerSentence(
  _ p: OpaquePointer?, _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in try deliver(o.fullSentence, buffer, capacity, needed) }
  }
}

@_cdecl("tw_optimizer_scratch")
public func optimizerScratch(_ p: OpaquePointer?) -> Int {
  do throws(Failure) { return try Handles.depot(p, .optimizer, twi_depot_bytes) } catch {
    _ = report(error)
    return 0
  }
}

@_cdecl("tw_optimizer_state_count")
public func optimizerStateCount(_ p: OpaquePointer?) -> Int {
  do throws(Failure) { return try with(p) { (o) throws(Failure) in o.stateCount } } catch {
    _ = report(error)
    return 0
  }
}

@_cdecl("tw_optimizer_state_at")
public func optimizerStateAt(_ p: OpaquePointer?, _ index: Int, _ info: UnsafeMutablePointer<tw_state_info>?)
  -> tw_status
{
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      let r = try o.describeState(index)
      try fill(
        info, "info",
        tw_state_info(
          struct_size: 0, stage: Interned.c(r.stage), slot: Interned.c(r.slot), parameter: r.tensor,
          count: Int64(r.count),
          bytes: r.bytes, storage: r.storage))
    }
  }
}

@_cdecl("tw_optimizer_state_read")
public func optimizerStateRead(_ p: OpaquePointer?, _ index: Int, _ out: UnsafeMutablePointer<Double>?, _ count: Int)
  -> tw_status
{
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      let row = try o.describeState(index)
      guard count == row.count else {
        throw Failure(Status.count, "this state has \(row.count) elements, `count` is \(UInt(bitPattern: count))")
      }
      guard count > 0 else { return }
      guard let out else { throw null("out") }
      try o.readState(index, out)
    }
  }
}

@_cdecl("tw_optimizer_save")
public func optimizerSave(
  _ p: OpaquePointer?, _ buffer: UnsafeMutableRawPointer?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      try deliver(
        "the state", buffer, capacity, needed, size: { () throws(Failure) in try Checkpoint.size(o) },
        save: { (room, write) throws(Failure) in try Checkpoint.save(o, room, write) })
    }
  }
}

@_cdecl("tw_optimizer_load")
public func optimizerLoad(_ p: OpaquePointer?, _ data: UnsafeRawPointer?, _ size: Int) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      guard let data else { throw null("data") }
      guard size >= 0 else { throw Failure(Status.format, "not a usable thalweg checkpoint: its size overflows") }
      try Checkpoint.load(o, UnsafeRawBufferPointer(start: data, count: size))
    }
  }
}

@_cdecl("tw_optimizer_save_file")
public func optimizerSaveFile(_ p: OpaquePointer?, _ path: UnsafePointer<CChar>?) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      try Checkpoint.save(o, to: try string(path, "path"))
    }
  }
}

@_cdecl("tw_optimizer_load_file")
public func optimizerLoadFile(_ p: OpaquePointer?, _ path: UnsafePointer<CChar>?) -> tw_status {
  status { () throws(Failure) in
    try with(p) { (o) throws(Failure) in
      try Checkpoint.load(o, from: try string(path, "path"))
    }
  }
}
