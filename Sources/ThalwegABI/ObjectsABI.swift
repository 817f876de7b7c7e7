import CThalweg
import ThalwegRunner
import ThalwegCore

@_cdecl("tw_regularizer_create")
public func regularizerCreate(_ sentence: UnsafePointer<CChar>?, _ out: UnsafeMutablePointer<OpaquePointer?>?)
  -> tw_status
{
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    out.pointee = nil
    out.pointee = try Handles.make(try RegularizerObject(try string(sentence, "sentence")), .regularizer)
  }
}

@_cdecl("tw_regularizer_destroy")
public func regularizerDestroy(_ p: OpaquePointer?) -> tw_status {
  status { () throws(Failure) in try Handles.destroy(p, .regularizer) }
}

private func regularizer<R>(_ p: OpaquePointer?, _ body: (RegularizerObject) throws(Failure) -> R) throws(Failure) -> R
{
  try Handles.with(p, .regularizer, RegularizerObject.self, body)
}

/// The tensors of an argument list, in the order in which a method declares its inputs; nil for those marked absent.
func operands(_ p: UnsafePointer<tw_tensor>?, _ count: Int, _ inputs: [Input]) throws(Failure) -> [Operand?] {
  guard count >= 0, count <= 1 << 16 else {
    throw Failure(Status.count, "count must be 0 to 2^16, got \(UInt(bitPattern: count))")
  }
  if count == 0 { return [] }
  guard let p else { throw null("inputs") }
  var list: [Operand?] = []
  for i in 0..<count { list.append(try Operand(p[i], i < inputs.count ? "`\(inputs[i].name)`" : "tensor \(i)")) }
  return list
}

/// One tensor argument.
private func view(_ t: UnsafePointer<tw_tensor>?, _ name: String, writable: Bool) throws(Failure) -> View {
  guard let t else { throw null(name) }
  return try View(argument: t.pointee, name, writable: writable)
}

@_cdecl("tw_regularizer_value")
public func regularizerValue(_ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ out: UnsafeMutablePointer<Double>?)
  -> tw_status
{
  status { () throws(Failure) in
    try regularizer(p) { (r) throws(Failure) in
      let v = try view(w, "w", writable: false)
      guard let out else { throw null("out") }
      out.pointee = try r.value([Operand(v)])
    }
  }
}

@_cdecl("tw_regularizer_gradient")
public func regularizerGradient(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ scale: Double, _ g: UnsafePointer<tw_tensor>?
) -> tw_status {
  status { () throws(Failure) in
    try regularizer(p) { (r) throws(Failure) in
      let v = try view(w, "w", writable: false), target = try view(g, "g", writable: true)
      try r.addGradient([Operand(v)], scale, target)
    }
  }
}

@_cdecl("tw_regularizer_value_with")
public func regularizerValueWith(
  _ p: OpaquePointer?, _ inputs: UnsafePointer<tw_tensor>?, _ count: Int, _ out: UnsafeMutablePointer<Double>?
) -> tw_status {
  status { () throws(Failure) in
    try regularizer(p) { (r) throws(Failure) in
      let list = try operands(inputs, count, r.inputs)
      guard let out else { throw null("out") }
      out.pointee = try r.value(list)
    }
  }
}

@_cdecl("tw_regularizer_gradient_with")
public func regularizerGradientWith(
  _ p: OpaquePointer?, _ inputs: UnsafePointer<tw_tensor>?, _ count: Int, _ scale: Double,
  _ g: UnsafePointer<tw_tensor>?
) -> tw_status {
  status { () throws(Failure) in
    try regularizer(p) { (r) throws(Failure) in
      let list = try operands(inputs, count, r.inputs), target = try view(g, "g", writable: true)
      try r.addGradient(list, scale, target)
    }
  }
}

@_cdecl("tw_regularizer_prox")
public func regularizerProx(_ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ t: Double) -> tw_status {
  status { () throws(Failure) in
    try regularizer(p) { (r) throws(Failure) in
      try r.prox(try view(w, "w", writable: true), t)
    }
  }
}

@_cdecl("tw_regularizer_prox_steps")
public func regularizerProxSteps(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ steps: UnsafePointer<tw_tensor>?
) -> tw_status {
  status { () throws(Failure) in
    try regularizer(p) { (r) throws(Failure) in
      try r.prox(try view(w, "w", writable: true), steps: try view(steps, "steps", writable: false))
    }
  }
}

@_cdecl("tw_constraint_create")
public func constraintCreate(_ sentence: UnsafePointer<CChar>?, _ out: UnsafeMutablePointer<OpaquePointer?>?)
  -> tw_status
{
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    out.pointee = nil
    out.pointee = try Handles.make(try ConstraintObject(try string(sentence, "sentence")), .constraint)
  }
}

@_cdecl("tw_constraint_destroy")
public func constraintDestroy(_ p: OpaquePointer?) -> tw_status {
  status { () throws(Failure) in try Handles.destroy(p, .constraint) }
}

private func constraint<R>(_ p: OpaquePointer?, _ body: (ConstraintObject) throws(Failure) -> R) throws(Failure) -> R {
  try Handles.with(p, .constraint, ConstraintObject.self, body)
}

@_cdecl("tw_constraint_project")
public func constraintProject(_ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in try c.project(try view(w, "w", writable: true)) }
  }
}

@_cdecl("tw_constraint_tangent")
public func constraintTangent(_ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ g: UnsafePointer<tw_tensor>?)
  -> tw_status
{
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      try c.tangent(try view(w, "w", writable: false), try view(g, "g", writable: true))
    }
  }
}

@_cdecl("tw_constraint_retract")
public func constraintRetract(_ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ u: UnsafePointer<tw_tensor>?)
  -> tw_status
{
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      try c.retract(try view(w, "w", writable: true), try view(u, "u", writable: false))
    }
  }
}

@_cdecl("tw_constraint_project_tangent")
public func constraintProjectTangent(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ u: UnsafePointer<tw_tensor>?
) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      try c.projectTangent(try view(w, "w", writable: false), try view(u, "u", writable: true))
    }
  }
}

@_cdecl("tw_constraint_exp")
public func constraintExp(_ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ u: UnsafePointer<tw_tensor>?)
  -> tw_status
{
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      try c.exponential(try view(w, "w", writable: true), try view(u, "u", writable: false))
    }
  }
}

@_cdecl("tw_constraint_log")
public func constraintLog(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ y: UnsafePointer<tw_tensor>?, _ u: UnsafePointer<tw_tensor>?
) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      try c.logarithm(
        try view(w, "w", writable: false), try view(y, "y", writable: false), try view(u, "u", writable: true))
    }
  }
}

@_cdecl("tw_constraint_transport")
public func constraintTransport(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ y: UnsafePointer<tw_tensor>?, _ u: UnsafePointer<tw_tensor>?
) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      try c.transport(
        try view(w, "w", writable: false), try view(y, "y", writable: false), try view(u, "u", writable: true))
    }
  }
}

@_cdecl("tw_constraint_points")
public func constraintPoints(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ axes: UnsafeMutablePointer<Int>?,
  _ count: UnsafeMutablePointer<Int>?
) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      let v = try view(w, "w", writable: false), leading = try c.pointAxes(v)
      axes?.pointee = leading
      count?.pointee = v.shape.prefix(leading).reduce(1, *)
    }
  }
}

/// Numbers of points into a caller's array, which must hold them all.
private func deliver(_ numbers: [Double], _ out: UnsafeMutablePointer<Double>?, _ capacity: Int) throws(Failure) {
  guard let out else { throw null("out") }
  guard capacity < 0 || capacity >= numbers.count else {
    throw Failure(Status.space, "the numbers of \(numbers.count) points are wanted, `out` has room for \(capacity)")
  }
  for (k, x) in numbers.enumerated() { out[k] = x }
}

@_cdecl("tw_constraint_inner")
public func constraintInner(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ u: UnsafePointer<tw_tensor>?, _ v: UnsafePointer<tw_tensor>?,
  _ out: UnsafeMutablePointer<Double>?, _ capacity: Int
) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      let w = try view(w, "w", writable: false), u = try view(u, "u", writable: false)
      try deliver(try c.inner(w, u, try view(v, "v", writable: false)), out, capacity)
    }
  }
}

@_cdecl("tw_constraint_distance")
public func constraintDistance(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ y: UnsafePointer<tw_tensor>?,
  _ out: UnsafeMutablePointer<Double>?, _ capacity: Int
) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      let w = try view(w, "w", writable: false), y = try view(y, "y", writable: false)
      try deliver(try c.distances(w, y), out, capacity)
    }
  }
}

@_cdecl("tw_constraint_check_point")
public func constraintCheckPoint(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ out: UnsafeMutablePointer<Double>?, _ capacity: Int
) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      try deliver(try c.pointErrors(try view(w, "w", writable: false)), out, capacity)
    }
  }
}

@_cdecl("tw_constraint_check_tangent")
public func constraintCheckTangent(
  _ p: OpaquePointer?, _ w: UnsafePointer<tw_tensor>?, _ u: UnsafePointer<tw_tensor>?,
  _ out: UnsafeMutablePointer<Double>?, _ capacity: Int
) -> tw_status {
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      let w = try view(w, "w", writable: false), u = try view(u, "u", writable: false)
      try deliver(try c.tangentErrors(w, u), out, capacity)
    }
  }
}

@_cdecl("tw_constraint_lmo")
public func constraintLMO(_ p: OpaquePointer?, _ g: UnsafePointer<tw_tensor>?, _ s: UnsafePointer<tw_tensor>?)
  -> tw_status
{
  status { () throws(Failure) in
    try constraint(p) { (c) throws(Failure) in
      try c.minimise(try view(g, "g", writable: false), try view(s, "s", writable: true))
    }
  }
}

@_cdecl("tw_schedule_create")
public func scheduleCreate(_ sentence: UnsafePointer<CChar>?, _ out: UnsafeMutablePointer<OpaquePointer?>?) -> tw_status
{
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    out.pointee = nil
    out.pointee = try Handles.make(try ScheduleObject(try string(sentence, "sentence")), .schedule)
  }
}

@_cdecl("tw_schedule_destroy")
public func scheduleDestroy(_ p: OpaquePointer?) -> tw_status {
  status { () throws(Failure) in try Handles.destroy(p, .schedule) }
}

private func schedule<R>(_ p: OpaquePointer?, _ body: (ScheduleObject) throws(Failure) -> R) throws(Failure) -> R {
  try Handles.with(p, .schedule, ScheduleObject.self, body)
}

@_cdecl("tw_schedule_value")
public func scheduleValue(_ p: OpaquePointer?, _ step: Int64, _ out: UnsafeMutablePointer<Double>?) -> tw_status {
  status { () throws(Failure) in
    try schedule(p) { (s) throws(Failure) in
      guard let out else { throw null("out") }
      out.pointee = try s.value(step)
    }
  }
}

@_cdecl("tw_schedule_observe")
public func scheduleObserve(_ p: OpaquePointer?, _ what: UnsafePointer<CChar>?, _ value: Double) -> tw_status {
  status { () throws(Failure) in
    try schedule(p) { (s) throws(Failure) in try s.observe(try string(what, "what"), value) }
  }
}

@_cdecl("tw_schedule_observe_samples")
public func scheduleObserveSamples(_ p: OpaquePointer?, _ gradients: UnsafePointer<tw_tensor>?) -> tw_status {
  status { () throws(Failure) in
    try schedule(p) { (s) throws(Failure) in
      try s.observe(samples: try view(gradients, "gradients", writable: false))
    }
  }
}

/// What a handle saves, piece by piece into a caller's buffer; a capacity of 0 only asks for the size. `save` first
/// says how much it is.
func deliver(
  _ what: String, _ buffer: UnsafeMutableRawPointer?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?,
  size: () throws(Failure) -> Int,
  save: ((Int) throws(Failure) -> Void, (UnsafeRawBufferPointer) -> Void) throws(Failure) -> Void
) throws(Failure) {
  if capacity == 0 {
    guard let needed else { throw null("needed") }
    needed.pointee = try size()
    return
  }
  guard let buffer else { throw null("buffer") }
  var at = 0
  try save(
    { (size) throws(Failure) in
      needed?.pointee = size
      guard capacity < 0 || capacity >= size else {
        throw Failure(Status.space, "\(what) needs \(size) bytes, the buffer has \(capacity)")
      }
    },
    { piece in
      if let p = piece.baseAddress { (buffer + at).copyMemory(from: p, byteCount: piece.count) }
      at += piece.count
    })
}
/// The same of bytes that are there.
func deliver(
  _ bytes: [UInt8], _ what: String, _ buffer: UnsafeMutableRawPointer?, _ capacity: Int,
  _ needed: UnsafeMutablePointer<Int>?
) throws(Failure) {
  try deliver(
    what, buffer, capacity, needed, size: { bytes.count },
    save: { (room, write) throws(Failure) in
      try room(bytes.count)
      bytes.withUnsafeBytes(write)
    })
}

@_cdecl("tw_schedule_save")
public func scheduleSave(
  _ p: OpaquePointer?, _ buffer: UnsafeMutableRawPointer?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tw_status {
  status { () throws(Failure) in
    try schedule(p) { (s) throws(Failure) in
      try deliver(s.save(), "the memory of the schedule", buffer, capacity, needed)
    }
  }
}

@_cdecl("tw_schedule_load")
public func scheduleLoad(_ p: OpaquePointer?, _ data: UnsafeRawPointer?, _ size: Int) -> tw_status {
  status { () throws(Failure) in
    try schedule(p) { (s) throws(Failure) in
      guard let data else { throw null("data") }
      guard size >= 0 else { throw Failure(Status.format, "not a usable saved schedule: its size overflows") }
      try s.load(UnsafeRawBufferPointer(start: data, count: size))
    }
  }
}

@_cdecl("tw_schedule_sentence")
public func scheduleSentence(
  _ p: OpaquePointer?, _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tw_status {
  status { () throws(Failure) in
    try schedule(p) { (s) throws(Failure) in try deliver(s.sentence, buffer, capacity, needed) }
  }
}

@_cdecl("tw_schedule_command")
public func scheduleCommand(_ p: OpaquePointer?, _ command: UnsafePointer<CChar>?) -> tw_status {
  status { () throws(Failure) in
    try schedule(p) { (s) throws(Failure) in try s.command(try string(command, "command")) }
  }
}
