import CThalweg
import ThalwegRunner
import ThalwegCore

@_cdecl("tw_cache_create")
public func cacheCreate(_ out: UnsafeMutablePointer<OpaquePointer?>?) -> tw_status {
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    out.pointee = nil
    out.pointee = try Handles.make(CacheObject(), .cache)
  }
}

@_cdecl("tw_cache_destroy")
public func cacheDestroy(_ p: OpaquePointer?) -> tw_status {
  status { () throws(Failure) in try Handles.destroy(p, .cache) }
}

private func cache<R>(_ p: OpaquePointer?, _ body: (CacheObject) throws(Failure) -> R) throws(Failure) -> R {
  try Handles.with(p, .cache, CacheObject.self, body)
}

@_cdecl("tw_objective_create")
public func objectiveCreate(_ sentence: UnsafePointer<CChar>?, _ out: UnsafeMutablePointer<OpaquePointer?>?)
  -> tw_status
{
  status { () throws(Failure) in
    guard let out else { throw null("out") }
    out.pointee = nil
    out.pointee = try Handles.make(try ObjectiveObject(try string(sentence, "sentence")), .objective)
  }
}

@_cdecl("tw_objective_destroy")
public func objectiveDestroy(_ p: OpaquePointer?) -> tw_status {
  status { () throws(Failure) in try Handles.destroy(p, .objective) }
}

private func objective<R>(_ p: OpaquePointer?, _ body: (ObjectiveObject) throws(Failure) -> R) throws(Failure) -> R {
  try Handles.with(p, .objective, ObjectiveObject.self, body)
}

@_cdecl("tw_objective_forward")
public func objectiveForward(
  _ p: OpaquePointer?, _ inputs: UnsafePointer<tw_tensor>?, _ count: Int, _ kept: OpaquePointer?,
  _ value: UnsafeMutablePointer<Double>?
) -> tw_status {
  status { () throws(Failure) in
    try objective(p) { (o) throws(Failure) in
      let list = try operands(inputs, count, o.inputs)
      guard let value else { throw null("value") }
      if kept == nil {
        value.pointee = try o.forward(list, nil)
      } else {
        try cache(kept) { (c) throws(Failure) in value.pointee = try o.forward(list, c) }
      }
    }
  }
}

@_cdecl("tw_objective_pullback")
public func objectivePullback(
  _ p: OpaquePointer?, _ kept: OpaquePointer?, _ upstream: Double, _ gradients: UnsafePointer<tw_tensor>?, _ count: Int
) -> tw_status {
  status { () throws(Failure) in
    try objective(p) { (o) throws(Failure) in
      try cache(kept) { (c) throws(Failure) in
        guard count >= 0, count <= 1 << 16 else {
          throw Failure(Status.count, "count must be 0 to 2^16, got \(UInt(bitPattern: count))")
        }
        guard count == 0 || gradients != nil else { throw null("gradients") }
        var targets: [View?] = []
        for i in 0..<count {
          guard let t = gradients?[i], t.flags & UInt32(TW_TENSOR_ABSENT) == 0 else {
            targets.append(nil)
            continue
          }
          targets.append(try View(t, i < o.inputs.count ? "the gradient of `\(o.inputs[i].name)`" : "gradient \(i)"))
        }
        try o.pullback(c, upstream, targets)
      }
    }
  }
}

@_cdecl("tw_objective_save")
public func objectiveSave(
  _ p: OpaquePointer?, _ buffer: UnsafeMutableRawPointer?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?
) -> tw_status {
  status { () throws(Failure) in
    try objective(p) { (o) throws(Failure) in
      try deliver(try o.save(), "the memory of the objective", buffer, capacity, needed)
    }
  }
}

@_cdecl("tw_objective_load")
public func objectiveLoad(_ p: OpaquePointer?, _ data: UnsafeRawPointer?, _ size: Int) -> tw_status {
  status { () throws(Failure) in
    try objective(p) { (o) throws(Failure) in
      guard let data else { throw null("data") }
      guard size >= 0 else { throw Failure(Status.format, "not a usable saved objective: its size overflows") }
      try o.load(UnsafeRawBufferPointer(start: data, count: size))
    }
  }
}
