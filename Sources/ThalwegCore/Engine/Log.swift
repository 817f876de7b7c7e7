import CThalweg

/// Warnings to the host; silent unless it asked.
public enum Log {
  nonisolated(unsafe) private static var hook: tw_log?
  nonisolated(unsafe) private static var context: UnsafeMutableRawPointer?
  public static func set(_ h: tw_log?, _ c: UnsafeMutableRawPointer?) { (hook, context) = (h, c) }
  public static func warn(_ message: String) {
    let s = twi_services()
    if let own = s.log {
      message.withCString { own(s.log_context, 1, $0) }
    } else if let hook {
      message.withCString { hook(context, 1, $0) }
    }
  }
}
