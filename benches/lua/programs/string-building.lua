-- Strings joined, formatted, cut and searched.
local _, _, n = ...

local function page(rows)
  local out = {}
  for i = 1, rows do
    local cell = ("<td class='c%d'>%s</td>"):format(i % 7, ("text "):rep(i % 9) .. i)
    out[#out + 1] = "<tr>" .. cell .. cell:upper() .. "</tr>"
  end
  return table.concat(out, "\n")
end

local length, words = 0, {}
for i = 1, tonumber(n or 250) do
  local text = page(2000 + i)
  length = length + #text
  for word in text:sub(1, 60000):gmatch("%a+%s?%d*") do words[word] = (words[word] or 0) + 1 end
  text = text:gsub("'c(%d)'", "\"%1\"")
  length = length + #text
end
local distinct, seen = 0, 0
for _, times in pairs(words) do distinct, seen = distinct + 1, seen + times end
return ("%d %d %d"):format(length, distinct, seen)
