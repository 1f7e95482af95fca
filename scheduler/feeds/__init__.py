"""What people feed: checked, remembered, left where it is, put in order, placed on workers."""
