import CThalweg
import ThalwegRunner
import ThalwegCore

@_cdecl("tw_optimizer_carried_numbers")
public func optimizerCarriedNumbers(_ p: OpaquePointer?) -> Int {
  do throws(Failure) {
    return try Handles.with(p, .optimizer, Optimizer.self) { (o) throws(Failure) in try o.carriedNumbers() }
  } catch {
    _ = report(error)
    return 0
  }
}

@_cdecl("tw_optimizer_step_carried")
public func optimizerStepCarried(_ p: OpaquePointer?, _ carried: UnsafePointer<tw_carried>?) -> tw_status {
  statusCode { () throws(Failure) in
    guard let carried else { throw null("carried") }
    let size = carried.pointee.struct_size
    guard size >= MemoryLayout<tw_carried>.size, size <= 1 << 16 else {
      throw Failure(
        Status.argument, "`carried->struct_size` is \(UInt(bitPattern: size)); set it to sizeof(tw_carried)")
    }
    let c = carried.pointee
    return try stepping(p) { (o) throws(Failure) in
      guard c.count == o.count else {
        throw Failure(
          Status.count, "`count` must be \(o.count), one for each parameter, got \(UInt(bitPattern: c.count))")
      }
      guard let parameters = c.parameters else { throw null("parameters") }
      guard let gradients = c.gradients else { throw null("gradients") }
      guard let numbers = c.numbers else { throw null("numbers") }
      guard c.observed_count == 0 || (c.observed != nil && c.values != nil) else { throw null("observed or values") }
      guard (0...64).contains(c.observed_count) else {
        throw Failure(
          Status.count, "`observed_count` is \(UInt(bitPattern: c.observed_count)); at most 64 are taken")
      }
      guard c.mode == Int32(TW_MODE_TRAIN) || c.mode == Int32(TW_MODE_EVAL) else {
        throw Failure(Status.range, "`mode` must be TW_MODE_TRAIN or TW_MODE_EVAL, got \(c.mode)")
      }
      var observed: [(what: String, value: Double)] = []
      for k in 0..<Int(c.observed_count) {
        observed.append((try string(c.observed?[k], "observed[\(k)]"), c.values?[k] ?? .nan))
      }
      return try o.stepCarried(
        Optimizer.Carried(
          parameters: parameters, gradients: gradients, state: c.state, stateCount: Int(clamping: c.state_count),
          numbers: numbers, numberCount: Int(clamping: c.number_count), observed: observed,
          evaluates: c.mode == Int32(TW_MODE_EVAL)))
    }
  }
}
