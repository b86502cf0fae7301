"""What `equipoise demo` shows: a small mixture-of-experts model that was really trained, and its recorded routing."""
