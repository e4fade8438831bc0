"""People to fields (encode) and fields to people (decode): the equations of the paper."""
